"""The library: functions of tensors and images, one noun per file; it knows nothing of Kubeflow."""

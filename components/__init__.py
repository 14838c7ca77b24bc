"""The steps of the pipeline, one folder each: `ls components` is the vocabulary of the DAG."""

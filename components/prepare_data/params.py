"""The knobs of prepare_data."""

from dataclasses import dataclass

from components.knobs import check_choices, check_least, check_seed

SOURCES = ("digits", "cifar100", "folder", "parquet", "s3")
SPLITS = ("own", "closed", "disjoint")
RESIZES = ("crop", "stretch", "drawing")
CLASS_ORDERS = ("drawn", "listed")
DISJOINT_BY = ("class", "group")


@dataclass(frozen=True)
class Params:
    """Where the images come from, what is refused, and how they are split.

    Attributes:
        source: digits (in scikit-learn), cifar100, folder, parquet or s3.
        location: a path, or s3://bucket/prefix; for cifar100 the folder that holds cifar-100-python. Digits need none.
        source_fingerprint: digest of what the source holds, set by `rankone run` so that the step cache sees new data.
        split: own (the source's), closed (each class in every split) or disjoint (test classes never seen in training).
        test_fraction: of each class's images (closed) or of the classes (disjoint) that is held out for testing.
        validation_fraction: of the training part that is held out for choosing; by images or by classes like the test.
        class_order: which classes are held out whole: drawn by the seed, or listed: by name, the first train and the
            last test.
        disjoint_by: what is held out whole: a class, or a group: the first folder of nested classes (alphabet/letter).
        image_size: height and width of the stored images, in pixels.
        resize: crop (short side to size, then the centre), stretch (both sides to size) or drawing (what differs from
            an even ground comes to the middle and nearer to one size: for characters and sketches).
        download: whether cifar100 may be downloaded when it is not there.
        cifar100_labels: fine (100 classes) or coarse (20).
        parquet_image_column: column with the bytes of images, or a struct with a field bytes.
        parquet_label_column: column with texts or whole numbers.
        max_pixels: width times height of a picture, checked before it is decoded; a larger one is quarantined.
        min_side: shorter side of a picture in pixels; a smaller one is quarantined.
        max_images_per_class: a seeded choice of so many of each class, with split=own in each split; 0 takes all.
        max_quarantined_fraction: share of the images that may be quarantined; beyond it the step fails.
        workers: processes that decode; 0 for one a processor.
        seed: of the choices of images and splits.
    """

    source: str = "digits"
    location: str = ""
    source_fingerprint: str = ""
    split: str = "closed"
    test_fraction: float = 0.2
    validation_fraction: float = 0.1
    class_order: str = "drawn"
    disjoint_by: str = "class"
    image_size: int = 32
    resize: str = "crop"
    download: bool = False
    cifar100_labels: str = "fine"
    parquet_image_column: str = "image"
    parquet_label_column: str = "label"
    max_pixels: int = 64_000_000
    min_side: int = 8
    max_images_per_class: int = 0
    max_quarantined_fraction: float = 0.02
    workers: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        check_choices(self, source=SOURCES, split=SPLITS, resize=RESIZES, cifar100_labels=("fine", "coarse"))
        check_choices(self, class_order=CLASS_ORDERS, disjoint_by=DISJOINT_BY)
        if self.split == "closed" and (self.class_order, self.disjoint_by) != ("drawn", "class"):
            raise ValueError(
                f"class_order is {self.class_order} and disjoint_by is {self.disjoint_by}; split=closed holds no class "
                "out whole. Use split=disjoint, or leave the two as they are."
            )
        self._check_own()
        if self.source in ("folder", "parquet", "s3") and not self.location:
            raise ValueError(f"location is empty; source '{self.source}' needs the place of its images there.")
        if self.source == "s3" and not self.location.startswith("s3://"):
            raise ValueError(f"location is '{self.location}'; source 's3' needs s3://bucket/prefix.")
        if self.source != "s3" and self.location.startswith("s3://"):
            raise ValueError(
                f"location is '{self.location}' and source is '{self.source}'; set source=s3 for a bucket."
            )
        if self.source == "digits" and (self.location or self.split == "own"):
            asked = f"location is '{self.location}'" if self.location else "split is own"
            raise ValueError(f"{asked}; the digits ship inside scikit-learn, without location and without own split.")
        self._check_numbers()

    def _check_own(self) -> None:
        if self.split != "own":
            return
        if self.test_fraction != Params.test_fraction:
            raise ValueError(
                f"test_fraction is {self.test_fraction}; split=own takes the source's test images. Leave test_fraction "
                "as it is, or use split=closed or split=disjoint."
            )
        if not self.validation_fraction and (self.class_order, self.disjoint_by) != ("drawn", "class"):
            raise ValueError(
                f"class_order is {self.class_order} and disjoint_by is {self.disjoint_by}; split=own with "
                "validation_fraction=0 holds no class out. Use split=disjoint, or leave the two as they are."
            )

    def _check_numbers(self) -> None:
        if not 0 < self.test_fraction < 1:
            raise ValueError(f"test_fraction is {self.test_fraction}; it is a share above 0 and below 1.")
        if not 0 <= self.validation_fraction < 1:
            raise ValueError(f"validation_fraction is {self.validation_fraction}; it is a share from 0 to below 1.")
        if not 0 <= self.max_quarantined_fraction <= 1:
            raise ValueError(f"max_quarantined_fraction is {self.max_quarantined_fraction}; it is a share from 0 to 1.")
        if not 8 <= self.image_size <= 1024:
            raise ValueError(f"image_size is {self.image_size}; the store takes 8 to 1024 pixels a side.")
        check_least(self, max_pixels=1, min_side=1, max_images_per_class=0, workers=0)
        check_seed(self)
        if self.max_images_per_class == 1:
            raise ValueError("max_images_per_class is 1; an image can only be retrieved through another of its class.")

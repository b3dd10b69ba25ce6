"""The four benchmarks of the papers: what their files are and where one gets them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class _Benchmark:
    title: str
    files: str
    page: str


KNOWN = {
    "cub": _Benchmark(
        "CUB-200-2011",
        "CUB_200_2011.tgz (images/, images.txt, image_class_labels.txt)",
        "https://www.vision.caltech.edu/datasets/cub_200_2011/",
    ),
    "cars": _Benchmark(
        "Cars196",
        "car_ims/ and cars_annos.mat",
        "https://ai.stanford.edu/~jkrause/cars/car_dataset.html",
    ),
    "sop": _Benchmark(
        "Stanford Online Products",
        "Stanford_Online_Products.zip (Ebay_train.txt, Ebay_test.txt)",
        "https://cvgl.stanford.edu/projects/lifted_struct/",
    ),
    "inshop": _Benchmark(
        "In-Shop Clothes Retrieval",
        "img.zip and list_eval_partition.txt",
        "https://mmlab.ie.cuhk.edu.hk/projects/DeepFashion/InShopRetrieval.html",
    ),
}


def sentence(name: str, root: str | None) -> str:
    """What was looked for, where, how to get it and what to do with it."""
    benchmark = KNOWN[name]
    where = f"in {root!r}" if root else "with no data.root given"
    return (
        f"{benchmark.title} ({name!r}) was looked for {where}, but this version has no "
        f"loader for its layout yet: get {benchmark.files} from {benchmark.page}, "
        "write a labels.csv (path,label,split) beside the images and open it with "
        "data.name=folder."
    )

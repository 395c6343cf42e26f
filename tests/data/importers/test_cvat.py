"""CVAT's XML."""

import pytest

from contextcrf.data.importers.importing import import_dataset
from contextcrf.utils.errors import DataError
from sources import imported, mask_of, write_image

META = """<meta><task><labels>
<label><name>road</name><color>#804080</color></label><label><name>car</name><color>#0000ff</color></label>
</labels></task></meta>"""


def write(folder, images, meta=META, before=""):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "annotations.xml").write_text(
        f'<?xml version="1.0" encoding="utf-8"?>{before}<annotations><version>1.1</version>{meta}{images}</annotations>'
    )
    return folder / "annotations.xml"


def test_all_kinds_of_shapes_in_their_z_order(tmp_path):
    write_image(tmp_path / "cvat" / "images" / "a.png", 8, 4)
    path = write(
        tmp_path / "cvat",
        """<image id="0" name="a.png" width="8" height="4">
        <box label="car" xtl="1" ytl="0" xbr="3" ybr="2" z_order="1"/>
        <polygon label="road" points="0.00,0.00;4.00,0.00;4.00,4.00;0.00,4.00" z_order="0"/>
        <mask label="car" rle="1, 2, 0, 2, 1" left="5" top="2" width="3" height="2" z_order="0"/>
        <ellipse label="road" cx="6" cy="1" rx="1" ry="1" z_order="0"/>
        <polyline label="car" points="0,0;1,1"/>
        <mask label="car" rle="1, 2" left="5" top="2" width="3" height="2"/>
        <tag label="car"/>
        </image>""",
    )
    report = imported("cvat", path, tmp_path / "out")
    assert mask_of(tmp_path / "out", "a") == ["12210110", "12210110", "11110022", "11110220"]
    assert list(report.pixels) == ["background", "road", "car"]
    assert "color: [128, 64, 128]" in (tmp_path / "out" / "classes.yaml").read_text()
    assert {reason: len(items) for reason, items in report.dropped.items()} == {
        "annotations of the type 'polyline', which cannot be drawn as an area": 1,
        "annotations of the type 'tag', which cannot be drawn as an area": 1,
        "shapes that are not valid": 1,
    }


def test_subsets_are_splits(tmp_path):
    images = ""
    for subset in ("Train", "Validation"):
        write_image(tmp_path / "cvat" / "images" / subset / "a.png")
        images += f"""<image name="{subset}/a.png" subset="{subset}" width="6" height="4">
        <box label="car" xtl="0" ytl="0" xbr="3" ybr="4"/><box label="bike" xtl="0" ytl="0" xbr="3" ybr="4"/></image>"""
    write(tmp_path / "cvat", images)
    report = imported("cvat", tmp_path / "cvat", tmp_path / "out")
    assert report.splits == {"train": 1, "val": 1}
    assert mask_of(tmp_path / "out", "a") == ["222000"] * 4
    assert report.dropped == {
        "shapes of the class 'bike', which is not imported": ["Train/a.png", "Validation/a.png"],
    }
    assert report.pixels["road"] == 0


def test_entities_and_other_files_are_refused(tmp_path):
    bomb = '<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]>'
    path = write(tmp_path / "bomb", '<image name="&b;" width="6" height="4"/>', before=bomb)
    with pytest.raises(DataError, match="declares the XML entity 'a'"):
        import_dataset("cvat", path, tmp_path / "out")
    outside = f'<!DOCTYPE x [<!ENTITY a SYSTEM "file://{path}">]>'
    path = write(tmp_path / "outside", '<image name="&a;" width="6" height="4"/>', before=outside)
    with pytest.raises(DataError, match="declares the XML entity 'a'"):
        import_dataset("cvat", path, tmp_path / "out")
    path = write(tmp_path / "video", '<track id="0" label="car"/>')
    with pytest.raises(DataError, match="tracks of a video"):
        import_dataset("cvat", path, tmp_path / "out")
    path.write_text("<annotations>")
    with pytest.raises(DataError, match="cannot be read as an XML file"):
        import_dataset("cvat", path, tmp_path / "out")
    with pytest.raises(DataError, match="contains no XML file"):
        import_dataset("cvat", tmp_path, tmp_path.parent / f"{tmp_path.name}-out")

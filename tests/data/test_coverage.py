"""The clips of published test sets."""

import pytest
from conftest import SHARED, needs_captions

from lamb.data.coverage import coverage
from lamb.data.manifest import Clip, ManifestError
from lamb.data.sources import caption_table


@needs_captions
@pytest.mark.parametrize(
    ("table", "name", "published"),
    [("audiocaps_test", "audiocaps-test", 975), ("clotho_test", "clotho-evaluation", 1045)],
)
def test_a_published_test_set(table, name, published):
    clips = caption_table(SHARED / "captions" / f"{table}.csv")
    found = coverage(clips)
    assert (found.test_set, found.published, found.missing) == (name, published, ())
    assert {len(clip.captions) for clip in clips} == {5}
    some = coverage(clips[3:])
    assert set(some.missing) == {clip.id for clip in clips[:3]}


def test_other_clips_are_of_no_published_set():
    assert coverage([Clip("mine", "a.wav"), Clip("audiocaps/nosuchvideo_0", "b.wav")]) is None


def test_clotho_tables_by_their_names(tmp_path):
    head = "file_name,caption_1,caption_2\n"
    for name in ("clotho_captions_evaluation.csv", "clotho_test.csv"):
        (tmp_path / name).write_text(head + "A sound.wav,Birds sing., Birds\n")
        (clip,) = caption_table(tmp_path / name)
        assert (clip.id, clip.captions) == ("clotho/evaluation/A sound.wav", ("Birds sing.", "Birds"))
    (tmp_path / "other.csv").write_text("file,text\na.wav,Rain.\n")
    with pytest.raises(ManifestError, match="line 2: not a caption table of AudioCaps or Clotho"):
        caption_table(tmp_path / "other.csv")

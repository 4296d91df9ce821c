"""Transforms that say what is wrong with a file."""

from mmcv.transforms import LoadImageFromFile as MMCVLoadImageFromFile

from ...registry import TRANSFORMS


class UnreadableImage(OSError):
    """An image file that is damaged, cut short or not there."""


@TRANSFORMS.register_module()
class LoadImageFromFile(MMCVLoadImageFromFile):
    """mmcv's ``LoadImageFromFile``; an image that cannot be read raises :class:`UnreadableImage` with its path and
    what to do."""

    def transform(self, results: dict) -> dict | None:
        try:
            return super().transform(results)
        except Exception as error:
            what = ' '.join(str(error).split()) or type(error).__name__
            raise UnreadableImage(f'the image {results["img_path"]!r} cannot be read ({what}): restore the file, take it out '
                                  "of the annotation file, or train without it: on_unreadable='skip' in the dataset of the "
                                  'config') from error

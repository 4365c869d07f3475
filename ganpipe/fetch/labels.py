"""The classes of pictures: a user's table of them, and Oxford-102's."""

from io import BytesIO

from ganpipe.common.errors import UserError
from ganpipe.fetch.archives import INVISIBLE, Opener, clean_name
from ganpipe.fetch.landmarks import table_lines

Labels = dict[str, str]  # picture → its class
LABELS_NAME = "labels.csv"  # the name of a user's table, in the same folder or archive as the pictures
MAX_MATLAB_BYTES = 1 << 20  # of imagelabels.mat, which has 502
# First cells of a line of headings.
HEADINGS = {"file", "filename", "image", "name", "path", "picture"}


def read_labels(name: str, opener: Opener) -> Labels:
    """Read a table of classes: in every row a picture's name, then its class; more columns are not read.

    Cells are separated as in a table of landmarks, and names are cleaned as the pictures' names are. `name`
    is the table's, for messages.

    Raises UserError: the table is too large, a line has no class, or a picture has two; names the line.
    """
    labels: Labels = {}
    for number, line, cells in table_lines(name, opener):
        picture, label = ([INVISIBLE.sub("_", cell.strip()) for cell in cells] + ["", ""])[:2]
        if not labels and picture.lower() in HEADINGS:
            continue
        file = "/".join(clean_name(picture))
        if not picture or not label:
            raise UserError(
                f"{name}: line {number}: found {line[:80]!r}, expected a picture's name and its class"
            )
        if labels.setdefault(file, label) != label:
            raise UserError(
                f"{name}: line {number}: {file} has the class {label!r}, and {labels[file]!r} before"
            )
    return labels


def read_oxford(name: str, opener: Opener) -> Labels:
    """Read imagelabels.mat of Oxford-102: the class of each picture, "1" to "102", MATLAB's array `labels`.

    Raises UserError: the file is another one, or damaged.
    """
    from scipy.io import loadmat

    with opener() as stream:
        data = BytesIO(stream.read(MAX_MATLAB_BYTES))
    try:
        numbers = loadmat(data, variable_names=["labels"])["labels"]
        return {f"image_{i:05d}.jpg": str(int(number)) for i, number in enumerate(numbers.flat, 1)}
    except Exception as error:  # loadmat raises many types for damaged files
        raise UserError(f"{name}: not the labels of Oxford-102 ({error!r:.80}); get a new copy") from None

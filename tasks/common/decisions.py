"""What a command about the champion came to: lines for people, one JSON document for programs, and a file that stays.

With --json nothing but the document goes to standard output, and a decision against the challenger is no failure of the
command: it ends with 0 and the document says so.
"""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from arms_model.errors import DataError
from arms_model.intervals import Interval
from tasks.common.files import write_json

VERDICT = Path(".arms/registry/verdict.json")
Decision = Literal["promoted", "refused", "inconclusive", "proposed", "nothing to compare"]


@dataclass(kw_only=True)
class Said:
    """Lines for people: shown as they come, or kept for the document.

    Attributes:
        is_shown: whether they go to standard output at once.
        lines: all of them.
    """

    is_shown: bool
    lines: list[str] = field(default_factory=list)

    def __call__(self, line: str) -> None:
        """Say a line."""
        self.lines.append(line)
        if self.is_shown:
            print(line)

    def document(self, document: dict[str, Any]) -> None:
        """Print the document, with the lines as its `text`, unless they were shown."""
        if not self.is_shown:
            print(json.dumps(document | {"text": "\n".join(self.lines)}, ensure_ascii=False))


@dataclass(frozen=True, kw_only=True)
class Conclusion:
    """How the comparison of challenger and champion ended.

    Attributes:
        decision: what was done, or would be.
        champion: the version that is champion afterwards.
        champion_digest: what it serves.
        challenger: the version that was compared; None where there was none.
        challenger_digest: what it serves; where there was none, of what the held-out queries pick: the champion's,
            or of the version that the champion was before VLMs were retired from it.
        difference: of macro EM, challenger minus champion; None where nothing was compared.
        num_queries: that were compared; None likewise.
    """

    decision: Decision
    champion: int
    champion_digest: str
    challenger: int | None
    challenger_digest: str
    difference: Interval | None = None
    num_queries: int | None = None

    def tell(self, said: Said, *, against: str = "") -> None:
        """Write it to `VERDICT` and give it to who asked.

        Args:
            said: what was said so far.
            against: why nothing became champion; "" where the challenger is, or would be.

        Raises:
            DataError: there is something against it, and a person asked: the exit code says it, too.
        """
        said.lines += [against] if against else []
        digests = {name: value for name, value in dataclasses.asdict(self).items() if name.endswith("_digest")}
        document = {name: value for name, value in dataclasses.asdict(self).items() if name not in digests}
        write_json(VERDICT, document | {"text": "\n".join(said.lines)} | digests)
        said.document(document)
        if said.is_shown and against:
            raise DataError(against)

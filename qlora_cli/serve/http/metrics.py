"""Counters in the text format of Prometheus."""

from __future__ import annotations

from collections import Counter

from qlora_cli.serve.engine.requests import EngineState

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """What the server has answered since it was started."""

    def __init__(self) -> None:
        self._num_answered: Counter[tuple[str, int]] = Counter()
        self._seconds: Counter[str] = Counter()

    def count(self, path: str, status: int, seconds: float) -> None:
        """An answer to a request.

        Args:
            path: one of the server's own, or `other`: a client must not be able to make names.
            status: HTTP status; 499 where the client had gone.
            seconds: from the headers to the end of the answer.
        """
        self._num_answered[path, status] += 1
        self._seconds[path] += seconds  # type: ignore[assignment]

    def text(self, state: EngineState) -> str:
        """All counters, those of the engine too.

        >>> metrics = Metrics()
        >>> metrics.count("/health", 200, 0.5)
        >>> print(metrics.text(EngineState(1, 2, 3, 40, 50)).splitlines()[2])
        qlora_requests_total{path="/health",status="200"} 1
        """
        lines = _header("qlora_requests_total", "counter", "Requests answered, by path and status.")
        for (path, status), count in sorted(self._num_answered.items()):
            lines.append(f'qlora_requests_total{{path="{path}",status="{status}"}} {count}')
        lines += _header("qlora_request_seconds_total", "counter", "Seconds spent on requests, by path.")
        lines += [f'qlora_request_seconds_total{{path="{path}"}} {s:.6f}' for path, s in sorted(self._seconds.items())]
        for name, kind, words, value in (
            ("qlora_answers_running", "gauge", "Answers that are being made.", state.num_running),
            ("qlora_answers_waiting", "gauge", "Requests in the queue.", state.num_waiting),
            ("qlora_answers_total", "counter", "Answers finished.", state.num_finished),
            ("qlora_prompt_tokens_total", "counter", "Tokens of prompts.", state.num_prompt_tokens),
            ("qlora_new_tokens_total", "counter", "Tokens of answers.", state.num_new_tokens),
        ):
            lines += [*_header(name, kind, words), f"{name} {value}"]
        return "\n".join(lines) + "\n"


def _header(name: str, kind: str, words: str) -> list[str]:
    return [f"# HELP {name} {words}", f"# TYPE {name} {kind}"]

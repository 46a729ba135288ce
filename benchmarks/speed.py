"""Tokens per second and time to first token: ForgeLLM against the bare library and against the stock server."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks.bare import Bare
from benchmarks.http_client import HttpStreams, forgellm, openai
from benchmarks.measure import Contender, Sample, alternate, median, prompts
from benchmarks.report import Report
from benchmarks.servers import daemon, mlx_lm_server
from forgellm import Supervisor
from forgellm.config import ModelConfig, Settings

# The bare contenders keep no prefix cache, so ForgeLLM must not gain by its own here.
FAIR = {"FORGELLM_PREFIX_CACHE_BYTES": "0"}


class PythonApi:
    """A Supervisor in this process, as a contender."""

    def __init__(self, pool: Supervisor, model: str) -> None:
        self._pool = pool
        self._model = model

    def __call__(self, prompts: list[str], tokens: int) -> Sample:
        generations = [self._pool.generate(self._model, p, max_tokens=tokens, temperature=0.0) for p in prompts]
        done = [generation.result() for generation in generations]
        return Sample(
            sum(each.usage.completion_tokens for each in done),
            max(each.total_s for each in done),
            tuple(each.time_to_first_token_s for each in done),
        )


@contextmanager
def contenders(name: str, source: str, folder: Path, layout: str, cache_dir: Path) -> Iterator[dict[str, Contender]]:
    """The same model in the same layout three times: bare, behind the Python API, behind HTTP."""
    config = ModelConfig(source=source, layout=layout)  # type: ignore[arg-type]
    settings = Settings(models={name: config}, prefix_cache_bytes=0, spare=False, cache_dir=str(cache_dir))
    toml = f'[models.{name}]\nsource = "{source}"\nlayout = "{layout}"\n'
    with ExitStack() as stack:
        bare = Bare(folder, layout, cache_dir)
        stack.callback(bare.close)
        pool = stack.enter_context(Supervisor(settings))
        pool.load(name)
        port = stack.enter_context(daemon(toml, {**FAIR, "FORGELLM_CACHE_DIR": str(cache_dir)}, [name]))
        yield {"bare": bare, "Python": PythonApi(pool, name), "HTTP": HttpStreams(port, forgellm(name))}


def against_bare(
    report: Report, name: str, title: str, found: dict[str, Contender], *, tokens: int, rounds: int, goal: float
) -> None:
    """One table: 1, 4 and 8 requests at once."""
    for requests in (1, 4, 8):
        alternate(found, requests, 4, 1)  # warm: shapes that were not seen before are compiled
        report.speeds(title, requests, alternate(found, requests, tokens, rounds), "bare")
        for what in ("Python", "HTTP"):
            rate, _ = report.ratios(title, requests, what)
            report.goal(f"{name} model, {requests} at once: {what} ÷ bare ≥ {goal}", rate, goal, at_least=True)
    report.show(title)


def against_stock_server(report: Report, title: str, http: Contender, folder: Path, *, tokens: int) -> None:
    """8 requests over HTTP: ForgeLLM, and mlx_lm.server with the BLAS and the 4-bit weights that it comes with."""
    with mlx_lm_server(folder) as port:
        stock = HttpStreams(port, openai())
        stock(prompts(1), 2)
        samples = alternate({"mlx_lm.server": stock, "ForgeLLM": http}, 8, tokens, 2)
    report.speeds(title, 8, samples, "mlx_lm.server")
    rate, first = report.ratios(title, 8, "ForgeLLM")
    report.goal("8 at once: tokens/s ÷ mlx_lm.server's ≥ 6", rate, 6, at_least=True)
    report.goal("8 at once: time to first token ÷ mlx_lm.server's ≤ 0.2", first, 0.2, at_least=False)
    report.show(title)


def echo_ceiling(report: Report, title: str, *, words: int = 2000) -> None:
    """What the way from a worker to an HTTP client carries when the engine costs nothing."""
    text = " ".join(["word"] * words)
    config = f'[models.ceiling]\nsource = "echo"\noptions = {{ text = "{text}" }}\n'
    with daemon(config, {}, ["ceiling"]) as port:
        http = HttpStreams(port, forgellm("ceiling"))
        for streams in (1, 8, 32):
            runs = [http(prompts(streams), words) for _ in range(3)]
            report.value(title, f"{streams} streams", median(run.tokens_per_s for run in runs), "tokens/s")
    report.show(title)

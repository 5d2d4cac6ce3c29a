"""The page in headless Chromium, inside Airflow's own navigation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from airflow_server import PASSWORD, AirflowServer
from chromium import Browser, Page, browser, executable
from lifecycle_world import World
from waiting import wait_until

from ml_lifecycle.delivery.judgements import read_judgement, watch_folder, write_judgement
from ml_lifecycle.delivery.release_history import PRODUCTION
from ml_lifecycle.records import Release

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(
        executable() is None, reason="no Chromium: the page was not looked at (apt-get install chromium)"
    ),
]
FRAME = "document.querySelector('iframe').contentDocument"

# Texts whose contrast with what is behind them is below 4.5, which WCAG 2.2 asks for (1.4.3, level AA).
PALE = """document => {
  const channels = colour => colour.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(c => c / 255)
    .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, at) => sum + c * [0.2126, 0.7152, 0.0722][at], 0);
  const behind = element => {
    const colour = element ? getComputedStyle(element).backgroundColor : "rgb(255, 255, 255)";
    return channels(colour)[3] === 0 ? behind(element.parentElement) : colour;
  };
  return [...document.querySelectorAll("body :not(.strip *)")]  // whose text is for screen readers
    .filter(each => each.checkVisibility())
    .filter(each => [...each.childNodes].some(node => node.nodeType === 3 && node.data.trim()))
    .map(each => [each, getComputedStyle(each).color, behind(each)])
    .filter(([, text, ground]) => {
      const [low, high] = [light(channels(text)), light(channels(ground))].sort((a, b) => a - b);
      return (high + 0.05) / (low + 0.05) < 4.5;
    })
    .map(([each, text, ground]) => `${each.innerText.slice(0, 40)}: ${text} on ${ground}`);
}"""


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as made:
        yield made


@pytest.fixture(scope="module")
def logged_in(chromium: Browser, airflow: AirflowServer) -> Page:
    """A tab of Airflow's, logged in through the form."""
    page = chromium.open(airflow.url)
    page.resize(1400, 950)
    page.wait("document.querySelector('input[name=password]')", 60)
    for name, value in (("username", "vera"), ("password", PASSWORD)):
        page.run(f"document.querySelector('input[name={name}]').focus()")
        page.send("Input.insertText", text=value)
    page.wait("!document.querySelector('button[type=submit]').disabled")
    page.run("document.querySelector('button[type=submit]').click()")
    page.wait("document.querySelector('a[href$=\"plugin/ml-lifecycle\"]')", 60)
    return page


@pytest.fixture
def page(logged_in: Page, airflow: AirflowServer) -> Page:
    """The models' page, come to through the navigation."""
    logged_in.resize(1400, 950)
    logged_in.go(f"{airflow.url}/")
    logged_in.wait("document.querySelector('a[href$=\"plugin/ml-lifecycle\"]')", 60)
    logged_in.run("document.querySelector('a[href$=\"plugin/ml-lifecycle\"]').click()")
    logged_in.wait(f"{FRAME}.querySelector('article')")
    return logged_in


def click(page: Page, selector: str) -> None:
    page.run(f"{FRAME}.querySelector({selector!r}).click()")


def text(page: Page, selector: str) -> str:
    return str(page.run(f"{FRAME}.querySelector({selector!r}).innerText"))


def test_the_models_are_there_and_nothing_complains(page: Page, tmp_path: Path) -> None:
    assert "6 models · 1 waiting for approval" in text(page, "#summary")
    assert "Version 1" in text(page, "#flights .champion")
    assert "approved by alice" in text(page, "#flights .champion")
    assert "critical skill -0.118, below 0" in text(page, "#flights .findings")
    assert "waits for approval by alice or bob" in text(page, "#flights .note")
    assert page.run(f"{FRAME}.querySelectorAll('#flights .strip li').length") == 12
    assert "secret" not in text(page, "body")
    # Airflow's own 401 before the login is the one thing the console may hold.
    assert [line for line in page.complaints() if "401" not in line] == []
    assert page.screenshot(tmp_path / "models.png").stat().st_size > 10_000


def test_hostile_text_stays_text(page: Page) -> None:
    click(page, "#flights > details > summary")
    page.wait(f"{FRAME}.querySelectorAll('#flights table').length === 2")
    assert "<script>document.title='owned'</script>" in text(page, "#flights .history")
    assert page.run(f"{FRAME}.querySelectorAll('body script, img').length") == 0
    assert "owned" not in page.run(f"document.title + {FRAME}.title")


@pytest.mark.parametrize("width", [380, 1400])
def test_nothing_is_cut_off(page: Page, width: int, tmp_path: Path) -> None:
    page.resize(width, 900)
    page.wait(f"{FRAME}.documentElement.clientWidth < {width}")
    assert page.run(f"{FRAME}.documentElement.scrollWidth - {FRAME}.documentElement.clientWidth") == 0
    page.screenshot(tmp_path / f"{width}.png")


@pytest.mark.parametrize("theme", ["dark", "light"])
def test_it_follows_airflows_theme(page: Page, theme: str, tmp_path: Path) -> None:
    page.run(f"document.documentElement.className = '{theme}'")
    page.wait(f"{FRAME}.documentElement.dataset.theme === '{theme}'")
    background = page.run(f"getComputedStyle({FRAME}.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") == (theme == "light")
    page.wait(f"{FRAME}.querySelectorAll('#arrivals .watch table').length === 2")
    assert page.run(f"({PALE})({FRAME})") == []
    scroll_to(page, "#arrivals .watch")
    page.screenshot(tmp_path / f"{theme}.png")


def begun_of(world: World, model: str) -> Release:
    (found,) = [each for each in world.releases.all_under_way(PRODUCTION) if each.release.model == model]
    return found.release


def scroll_to(page: Page, selector: str) -> None:
    page.run(f"{FRAME}.querySelector({selector!r}).scrollIntoView({{block: 'start'}})")


@pytest.mark.parametrize("width", [380, 1400])
def test_a_release_under_way_says_how_it_is_judged(page: Page, width: int, tmp_path: Path) -> None:
    page.resize(width, 950)
    page.wait(f"{FRAME}.querySelectorAll('#arrivals .watch table').length === 2")
    shown = text(page, "#arrivals .watch")
    assert "Version 2: canary, answers 5 % of the traffic" in shown
    assert "Held at the last look, 20" in shown
    assert "arrivals, revision 2" in text(page, "#arrivals .traffic")
    assert "errors: 800 rows of the challenger; at least 1,000 are asked for" in shown
    assert "a promotion takes 1h at least, and after 3d people decide" in shown
    heads = f"[...{FRAME}.querySelectorAll('#arrivals .watch table')].map(each => each.tHead.textContent)"
    assert all("Worse by, and bounds" in head for head in page.run(heads))
    row = str(page.run(f"{FRAME}.querySelector('#arrivals .watch tbody tr').innerText"))
    for figure in (
        "errors",
        "1 %",
        "800 requests",
        "3,200 requests",
        "0.5 points",
        "undecided",
        "200 requests",
    ):
        assert figure in row
    assert "answers slower than 48 ms" in shown
    assert page.run(f"{FRAME}.querySelectorAll('#arrivals .watch th[scope=row]').length") == 9
    assert "<script>document.title='owned'</script>" in page.run(
        f"{FRAME}.querySelector('#arrivals .watch details').textContent"
    )
    assert page.run(f"{FRAME}.documentElement.scrollWidth - {FRAME}.documentElement.clientWidth") == 0
    assert [line for line in page.complaints() if "401" not in line] == []
    scroll_to(page, "#arrivals .watch")
    page.run(f"{FRAME}.querySelector('#arrivals .watch .scroll').scrollLeft = 150")
    page.screenshot(tmp_path / f"held-{width}.png")


def test_one_that_is_left_to_people_needs_attention(page: Page, world: World, tmp_path: Path) -> None:
    begun = begun_of(world, "arrivals")
    judgement = read_judgement(world.production, begun)
    write_judgement(world.production, begun, replace(judgement, for_people=True))
    try:
        click(page, "#refresh")
        page.wait(f"{FRAME}.querySelector('#arrivals .watch')?.innerText.includes('for people to decide')")
        assert "promote of the same version with all_traffic" in text(page, "#arrivals .watch")
        click(page, "#urgent")
        shown = f"[...{FRAME}.querySelectorAll('article:not([hidden])')].map(each => each.id).join()"
        assert page.run(shown) == "flights,arrivals"
        page.screenshot(tmp_path / "people.png")
    finally:
        write_judgement(world.production, begun, judgement)


def test_one_that_nobody_looks_at_any_more_needs_attention(page: Page, world: World, tmp_path: Path) -> None:
    begun = begun_of(world, "arrivals")
    judgement = read_judgement(world.production, begun)
    write_judgement(world.production, begun, replace(judgement, judged_at=world.now))
    try:
        click(page, "#refresh")
        page.wait(f"{FRAME}.querySelector('#arrivals .watch .error')")
        shown = text(page, "#arrivals .watch")
        assert f"Nobody has looked since {world.now:%Y-%m-%d %H:%M} UTC: is the DAG there" in shown
        assert "Held at the last look, 2013-" in shown
        click(page, "#urgent")
        urgent = f"[...{FRAME}.querySelectorAll('article:not([hidden])')].map(each => each.id).join()"
        assert page.run(urgent) == "flights,arrivals"
        scroll_to(page, "#arrivals")
        page.screenshot(tmp_path / "overdue.png")
    finally:
        write_judgement(world.production, begun, judgement)


def test_one_that_was_rolled_back_by_the_watch_says_why(page: Page, tmp_path: Path) -> None:
    page.wait(f"{FRAME}.querySelector('#fares .watch table')")
    shown = text(page, "#fares .watch")
    assert "Version 2: canary, answered 5 % of the traffic (revision 2, rolled back)" in shown
    champion = text(page, "#fares .champion")
    assert "Version 1\n" in champion
    assert "(restored)" not in champion
    assert "all traffic again since" in champion
    assert "Version 2 was taken back: errors: 20.00% in 800 rows" in champion
    assert "Rolled back at the last look" in shown
    assert "errors: 20.00% in 800 rows, the champion 1.00% in 3,200" in shown
    assert "✗ worse" in shown
    # A segment that is worse is not folded away.
    assert page.run(f"{FRAME}.querySelector('#fares .watch details').open")
    scroll_to(page, "#fares")
    page.screenshot(tmp_path / "rolled-back.png")


def test_a_judgement_opens_from_the_table_of_releases(page: Page, tmp_path: Path) -> None:
    click(page, "#fares > details > summary")
    button = "#fares .history button"
    page.wait(f"{FRAME}.querySelector('{button}')")
    click(page, button)
    page.wait(f"{FRAME}.querySelector('#fares .history td.watch table')")
    assert page.run(f"{FRAME}.querySelector('{button}').getAttribute('aria-expanded')") == "true"
    assert "Rolled back at the last look" in text(page, "#fares td.watch")
    rows = str(page.run(f"{FRAME}.querySelector('#fares .history').innerText"))
    assert "version 2: 5 % (canary); version 1: 95 %" in rows
    assert "nobody: the watch" in rows
    assert "alice\napproval ended 2013-" in rows
    scroll_to(page, "#fares .history")
    page.screenshot(tmp_path / "history.png")
    click(page, button)
    assert page.run(f"{FRAME}.querySelectorAll('#fares td.watch').length") == 0


def test_a_judgement_that_cannot_be_read_is_said_so_beside_all_the_rest(
    page: Page, world: World, tmp_path: Path
) -> None:
    begun = begun_of(world, "arrivals")
    path = f"{watch_folder(begun)}/judgement.json"
    whole = world.production.read_bytes(path)
    world.production.write_bytes(path, whole[:50])
    try:
        click(page, "#refresh")
        page.wait(f"{FRAME}.querySelector('#arrivals .watch .error')")
        assert "The judgement cannot be read. Its file is torn" in text(page, "#arrivals .watch")
        assert "canary, answers 5 % of the traffic" in text(page, "#arrivals .watch")
        assert "Version 1" in text(page, "#arrivals .champion")
        scroll_to(page, "#arrivals")
        page.screenshot(tmp_path / "torn.png")
    finally:
        world.production.write_bytes(path, whole)


def test_a_dag_is_followed_out_of_the_frame(page: Page, airflow: AirflowServer) -> None:
    click(page, "#flights nav a")
    page.wait(f"location.href.startsWith('{airflow.url}/dags/flights__train')")


def test_mlflow_opens_in_a_tab_of_its_own(page: Page, chromium: Browser) -> None:
    tab = chromium.opened(lambda: click(page, "#flights nav a[target=_blank]"))
    wanted = "http://mlflow.example:5000/#/models/flights"
    wait_until(lambda: chromium.pages()[tab.target] in (wanted, "chrome-error://chromewebdata/"), wanted)
    assert page.run("location.pathname").startswith("/plugin/ml-lifecycle")


def test_a_report_draws_itself_and_reaches_nothing_of_airflows(
    page: Page, chromium: Browser, world: World, airflow: AirflowServer
) -> None:
    link = page.run(f"{FRAME}.querySelector('#flights .links a').getAttribute('href')")
    world.lake.write_bytes(link.removeprefix("reports/"), _evidently_page())
    report = chromium.opened(lambda: click(page, "#flights .links a"))
    report.wait("document.body?.innerText.includes('Drifted Columns')", 60)
    assert report.run("origin") == "null"
    for forbidden in ("document.cookie", "localStorage.length", "sessionStorage.length"):
        with pytest.raises(AssertionError, match="SecurityError"):
            report.run(forbidden)
    with pytest.raises(AssertionError, match="Failed to fetch"):
        report.run(f"fetch('{airflow.url}/ml-lifecycle/api/models').then(answer => answer.text())")


def test_a_link_from_a_task_leads_to_its_model(logged_in: Page, airflow: AirflowServer) -> None:
    logged_in.go(f"{airflow.url}/plugin/ml-lifecycle/ml-lifecycle/#delays")
    logged_in.wait(f"{FRAME}.querySelector('article.target')")
    assert logged_in.run(f"{FRAME}.querySelector('article.target').id") == "delays"


def test_what_needs_somebody_can_be_filtered(page: Page) -> None:
    shown = f"[...{FRAME}.querySelectorAll('article:not([hidden])')].map(each => each.id).join()"
    click(page, "#urgent")
    assert page.run(shown) == "flights"
    click(page, "#urgent")
    page.run(f"{FRAME}.getElementById('search').focus()")
    page.send("Input.insertText", text="LAYS")
    assert page.run(shown) == "delays"


def test_who_may_see_no_model_is_told_so(chromium: Browser, airflow: AirflowServer, tmp_path: Path) -> None:
    with airflow.client("eve") as client:
        tab = chromium.open(f"{airflow.url}/ml-lifecycle/", {"_token": client.cookies["_token"]})
    tab.wait("document.querySelector('.empty')")
    assert "no models you may see" in tab.run("document.body.innerText")
    assert tab.complaints() == []
    tab.screenshot(tmp_path / "empty.png")


def _evidently_page() -> bytes:
    """A report as the monitor writes it."""
    import numpy as np
    import polars as pl

    from ml_lifecycle.adapters.evidently import drift_report
    from ml_lifecycle.records import ColumnSpec

    rng = np.random.default_rng(0)
    reference, current = (pl.DataFrame({"x": rng.normal(shift, 1, 300)}) for shift in (0, 3))
    made = drift_report(reference, current, [ColumnSpec("x", "float")])
    return made.html.encode()

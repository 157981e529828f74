"""Whether the hub, or another host, has what a run needs: asked within a deadline."""

import threading
from concurrent.futures import Future
from typing import Any

from huggingface_hub import HfApi, get_session

from hydratune.build.hub import Need, NotThere


def ask(need: Need, patience: float) -> Any:
    """The hub's description of the repository, with its commit and files; None of files elsewhere, which are there.

    Raises TimeoutError after `patience` seconds: an HTTP library's own timeout is for each of a name's addresses, and
    for each of the requests that huggingface_hub makes of one.
    """
    answer: Future[Any] = Future()

    def work() -> None:
        try:
            answer.set_result(_answer(need, patience))
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=work, daemon=True).start()  # for which a process that ends doesn't wait
    return answer.result(patience)


def _answer(need: Need, patience: float) -> Any:
    api, described = HfApi(token=need.token), None
    if need.kind == "model":
        return api.model_info(need.id, revision=need.revision, timeout=patience)
    if not need.addresses:
        return api.dataset_info(need.id, revision=need.revision, timeout=patience)
    for one in need.addresses:
        if one.startswith("hf://datasets/"):
            owner, name = one.removeprefix("hf://datasets/").split("/")[:2]
            described = api.dataset_info(f"{owner}/{name.partition('@')[0]}", timeout=patience)
        elif one.startswith("http"):
            found = get_session().head(one, timeout=patience, follow_redirects=True)
            if found.status_code in (404, 410):  # whatever else it says, only the loading can tell
                raise NotThere(one)
    return described

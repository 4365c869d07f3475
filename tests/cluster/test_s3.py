"""An S3 bucket as the DVC remote of cells: moto's server, which checks credentials, in place of Amazon's."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from test_cell import clones, state
from toy import git, on_hub, order, toy_project

from ganpipe.cluster import board, cell
from ganpipe.cluster.submit import _checkout_problems, _remote
from ganpipe.common.processes import NODE
from ganpipe.experiments import revisions

pytestmark = pytest.mark.long  # S3's libraries take seconds to load


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """Start a server with a bucket, and set the credentials of a user who may use it; yield its address."""
    pytest.importorskip("dvc_s3")
    pytest.importorskip("moto")
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    address = "http://{}:{}".format(*server.get_host_and_port())
    keys = {"aws_access_key_id": "any", "aws_secret_access_key": "any", "region_name": "us-east-1"}
    users = boto3.client("iam", endpoint_url=address, **keys)
    users.create_user(UserName="user")
    allow = '{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}'
    users.put_user_policy(UserName="user", PolicyName="bucket", PolicyDocument=allow)
    key = users.create_access_key(UserName="user")["AccessKey"]
    boto3.client("s3", endpoint_url=address, **keys).create_bucket(Bucket="bucket")
    requests.post(f"{address}/moto-api/reset-auth", data="0", timeout=9)  # credentials count from now on
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", key["AccessKeyId"])
        patch.setenv("AWS_SECRET_ACCESS_KEY", key["SecretAccessKey"])
        yield address
    server.stop()


def project(folder: Path, address: str, bucket: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a checkout of the toy project whose DVC remote, in .dvc/config, is a bucket."""
    checkout = toy_project(folder, monkeypatch)
    with open(checkout / ".dvc/config", "a") as config:
        config.write("    remote = storage\n['remote \"storage\"']\n")
        config.write(f"    url = s3://{bucket}/gan\n    endpointurl = {address}\n")
    git(checkout, "commit", "-qam", "a bucket")
    git(checkout, "push", "-q", "origin", "main")
    return checkout


def problems(checkout: Path) -> list[str]:
    """Return what is refused before a cell is submitted."""
    return list(_checkout_problems(checkout, str(checkout.parent / "hub.git"), _remote(checkout)))


def test_cells_share_their_data_through_a_bucket(
    tmp_path: Path, s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failure means that rented machines lack the pictures, or that their results are lost with them."""
    checkout = project(tmp_path, s3, "bucket", monkeypatch)
    monkeypatch.chdir(checkout)
    (checkout / "data.txt").write_text("pictures")
    pipeline = (checkout / "dvc.yaml").read_text()
    (checkout / "dvc.yaml").write_text(pipeline.replace("[toy.py]", "[toy.py, data.txt]"))
    with revisions.open_repo(checkout) as repo:
        repo.add("data.txt")
        git(checkout, "commit", "-qam", "pictures")
        git(checkout, "push", "-q", "origin", "main")
        assert problems(checkout) == ["the DVC remote storage lacks 1 tracked files; `dvc push`"]
        repo.push()
    assert problems(checkout) == []
    folder = order(checkout, "grid-a-s0", "steps=2", "seed=0", url="s3://bucket/gan")
    assert cell.run(folder) == "finished", state(folder)
    assert not clones(checkout)
    git(checkout, "fetch", "-q", "origin", "refs/exps/*:refs/exps/*")
    shutil.rmtree(checkout / ".dvc/cache")
    git(checkout, "checkout", "-q", "--force", on_hub(checkout)["grid-a-s0"])
    with revisions.open_repo(checkout) as repo:
        repo.pull()
    assert (checkout / "out.txt").read_text() == "True 0 2"


def test_a_bucket_that_refuses(tmp_path: Path, s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failure means a night of training whose results have nowhere to go, or a key on a screen."""
    checkout = project(tmp_path / "1", s3, "no-bucket", monkeypatch)
    folder = order(checkout, "grid-a-s0", "steps=2", "seed=0", url="s3://no-bucket/gan")
    reason = "The specified bucket does not exist"
    assert problems(checkout) == [f"the DVC remote storage (s3://no-bucket/gan) cannot be used: {reason}"]
    assert cell.run(folder) == "failed" and not on_hub(checkout)
    (clone,) = clones(checkout)
    assert (clone / "out.txt").read_text() == "True 0 2"
    refused = (
        f"the DVC remote storage does not take the data: {reason}; nothing is lost: {NODE} keeps {clone}"
    )
    assert state(folder).reason == refused

    # Wrong credentials end a cell before it trains.
    checkout = project(tmp_path / "2", s3, "bucket", monkeypatch)
    folder = order(checkout, "grid-a-s0", "steps=2", "seed=0", url="s3://bucket/gan")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret")
    (line,) = problems(checkout)
    assert cell.run(folder) == "failed" and not on_hub(checkout)
    assert "Forbidden" in line and "Forbidden" in state(folder).reason
    log = board.read_tail(folder / "1.log")
    assert "from step" not in log
    for secret in ("wrong-secret", os.environ["AWS_ACCESS_KEY_ID"]):
        assert secret not in line + state(folder).reason + log

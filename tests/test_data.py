"""Downloads from a server here: whole, resumed, cut, wrong, without room; and archives that lie."""

import errno
import hashlib
import io
import socket
import tarfile
import threading
import zipfile
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from typer.testing import CliRunner

from spfpn.apps.cli import app
from spfpn.core import download as module
from spfpn.core.download import DownloadError, RemoteFile, download, unpack
from spfpn.data.catalog import DATA_SETS, count_images, fetch_dataset

CONTENT = bytes(range(256)) * 2000


class Publisher(BaseHTTPRequestHandler):
    "Serves `content`; `cut` bytes of it, if not 0, and `ranges` where the client asks for them."

    content, cut, ranges, tag, asked = CONTENT, 0, True, '"1"', None

    def do_GET(self):
        type(self).asked.append(self.headers.get("Range"))
        start, wanted = 0, self.headers.get("Range")
        if self.ranges and wanted and self.headers.get("If-Range", self.tag) == self.tag:
            start = int(wanted[len("bytes=") : -1])
        if start >= len(self.content):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        if self.tag:
            self.send_header("ETag", self.tag)
        if start:
            size = len(self.content)
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        self.send_header("Content-Length", str(len(self.content) - start))
        self.end_headers()
        self.wfile.write(self.content[start : self.cut or None])

    def log_message(self, *_):
        pass


@pytest.fixture
def publisher(monkeypatch):
    "A handler class whose attributes say how it serves, and its `address`."
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    handler = type("Handler", (Publisher,), dict(asked=[]))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    handler.address = f"http://127.0.0.1:{server.server_port}"
    yield handler
    server.shutdown()
    server.server_close()


def remote(publisher, known: bool = True) -> RemoteFile:
    "The publisher's file, with or without its checksum."
    digest = hashlib.sha256(publisher.content).hexdigest()
    return RemoteFile(f"{publisher.address}/a.zip", sha256=digest if known else "")


def cut_once(publisher, path: Path, known: bool = True, at: int = 100_000):
    "Let a download break off."
    publisher.cut = at
    with pytest.raises(DownloadError, match="broke off after 100.0 kB of 512.0 kB"):
        download(remote(publisher, known), path)
    publisher.cut = 0


# ---- one file


def test_a_file_arrives_whole(publisher, tmp_path):
    digest = download(remote(publisher), tmp_path / "new" / "a.zip")
    assert (tmp_path / "new" / "a.zip").read_bytes() == CONTENT
    assert digest == hashlib.sha256(CONTENT).hexdigest()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.zip"]


@pytest.mark.parametrize("known", [True, False])
def test_an_interrupted_download_goes_on_where_it_was(known, publisher, tmp_path):
    cut_once(publisher, tmp_path / "a.zip", known)
    assert not (tmp_path / "a.zip").exists()
    download(remote(publisher, known), tmp_path / "a.zip")
    assert publisher.asked == [None, "bytes=100000-"]
    assert (tmp_path / "a.zip").read_bytes() == CONTENT


@pytest.mark.parametrize(
    "change",
    [dict(ranges=False), dict(tag='"2"'), dict(tag=""), dict(content=CONTENT[:50_000], tag='"2"')],
    ids=["no ranges", "another file", "no tag", "a shorter file"],
)
def test_a_part_that_cannot_be_continued_is_replaced(change, publisher, tmp_path):
    cut_once(publisher, tmp_path / "a.zip")
    for name, value in change.items():
        setattr(publisher, name, value)
    download(remote(publisher), tmp_path / "a.zip")
    assert (tmp_path / "a.zip").read_bytes() == publisher.content


def test_without_tag_and_checksum_a_download_begins_again(publisher, tmp_path):
    publisher.tag = ""
    cut_once(publisher, tmp_path / "a.zip", known=False)
    download(remote(publisher, known=False), tmp_path / "a.zip")
    assert publisher.asked == [None, None]


def test_a_whole_part_is_not_asked_for_again(publisher, tmp_path):
    (tmp_path / "a.zip.part").write_bytes(CONTENT)
    download(replace(remote(publisher), size=len(CONTENT)), tmp_path / "a.zip")
    assert publisher.asked == []


def test_a_wrong_checksum_keeps_nothing(publisher, tmp_path):
    wrong = replace(remote(publisher), sha256="0" * 64)
    with pytest.raises(DownloadError, match=f"its sha256 is [0-9a-f]{{64}}, not {'0' * 64}"):
        download(wrong, tmp_path / "a.zip")
    assert not list(tmp_path.iterdir())


def test_another_size_is_refused_before_it_arrives(publisher, tmp_path):
    with pytest.raises(DownloadError, match="it has 512,000 bytes there, not 9"):
        download(replace(remote(publisher), size=9), tmp_path / "a.zip")
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fills_up_keeps_the_part(publisher, tmp_path, monkeypatch):
    class Full(io.FileIO):
        def write(self, data):
            if self.tell() >= 200_000:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(data[: 200_000 - self.tell()])

    def opened(path, mode="r", **options):
        return Full(path, "w") if mode == "wb" else open(path, mode, **options)

    monkeypatch.setattr(module, "_BLOCK", 100_000)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", opened)
        with pytest.raises(DownloadError, match=r"No space left on device; .* are free there"):
            download(remote(publisher), tmp_path / "a.zip")
    assert (tmp_path / "a.zip.part").stat().st_size == 200_000
    download(remote(publisher), tmp_path / "a.zip")
    assert publisher.asked == [None, "bytes=200000-"]


def test_a_disk_that_is_too_small_is_told_before(publisher, tmp_path, monkeypatch):
    usage = module.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(DownloadError, match="512.0 kB are needed; 1.0 kB are free there"):
        download(remote(publisher), tmp_path / "a.zip")


@pytest.mark.parametrize("kind", ["refused", "no such host", "no such page"])
def test_what_cannot_be_reached_is_told_at_once(kind, publisher, tmp_path, monkeypatch):
    def no_host(*arguments, **options):
        raise socket.gaierror(-2, "Name or service not known")

    address, reason = f"{publisher.address}/a.zip", "404"
    if kind == "refused":
        address, reason = "http://127.0.0.1:9/a.zip", "no connection: .*refused"
    elif kind == "no such host":
        monkeypatch.setattr(socket, "getaddrinfo", no_host)
        reason = "no connection: .*Name or service not known"
    else:
        publisher.do_GET = lambda self: self.send_error(404)
    with pytest.raises(DownloadError, match=reason):
        download(RemoteFile(address), tmp_path / "a.zip")
    assert not list(tmp_path.iterdir())


# ---- archives


def tar_of(*members: tarfile.TarInfo) -> bytes:
    "A tar archive of members, each with one byte."
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for member in members:
            member.size = 1 if member.isfile() else 0
            archive.addfile(member, io.BytesIO(b"1"))
    return file.getvalue()


def zip_of(*names: str) -> bytes:
    "A zip archive of members, each with one byte."
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, b"1")
    return file.getvalue()


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


EVIL_NAMES = ("../evil", "/tmp/evil", "a/../../evil", "C:\\evil", "..\\evil", "\\evil")
EVIL = {
    **{f"zip {name}": zip_of("a/ok", name) for name in EVIL_NAMES},
    **{f"tar {name}": tar_of(tarfile.TarInfo("ok"), tarfile.TarInfo(name)) for name in EVIL_NAMES},
    "symbolic link": tar_of(link("a", "/tmp"), tarfile.TarInfo("a/evil")),
    "hard link": tar_of(link("a", "/etc/passwd", tarfile.LNKTYPE)),
    "device": tar_of(link("a", "", tarfile.CHRTYPE)),
}


@pytest.mark.parametrize("name", EVIL)
def test_an_archive_writes_nothing_outside_its_folder(name, tmp_path):
    (tmp_path / "x").write_bytes(EVIL[name])
    out = tmp_path / "deep" / "out"
    with pytest.raises(DownloadError, match="leads out of the folder|no file"):
        unpack(tmp_path / "x", out, lambda member: member)
    written = {path for path in tmp_path.rglob("*") if path.is_file()}
    assert written <= {tmp_path / "x", out / "ok", out / "a" / "ok"}


@pytest.mark.parametrize(
    "content",
    [b"", b"no archive", tar_of(tarfile.TarInfo("a"))[:-20]],
    ids=["empty", "none", "cut off"],  # an archive's bytes hold the time
)
def test_a_damaged_archive_is_named(content, tmp_path):
    (tmp_path / "x.tgz").write_bytes(content)
    with pytest.raises(DownloadError, match=r"x.tgz: not a whole archive"):
        unpack(tmp_path / "x.tgz", tmp_path / "out", lambda member: member)


# ---- data sets


@pytest.fixture
def coco(publisher, monkeypatch):
    "COCO's validation images, of which the publisher has two."
    publisher.content = zip_of("val2017/1.jpg", "val2017/2.jpg", "val2017/notes.txt")
    small = replace(DATA_SETS["coco-val"], images=2, files=(remote(publisher),))
    monkeypatch.setitem(DATA_SETS, "coco-val", small)
    return small


def run(*arguments: str):
    return CliRunner().invoke(app, ["data", *map(str, arguments)])


def test_a_data_set_is_fetched_into_the_layout_of_its_reader(coco, tmp_path, monkeypatch):
    monkeypatch.setenv("DATA_DIR", str(tmp_path))
    done = run("coco-val")
    assert done.exit_code == 0, done.output
    assert "license: Flickr's terms" in done.output and coco.files[0].address in done.output
    assert "wrote 2 images" in done.output and "-p data.images=coco-val" in done.output
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == [".lock", "1.jpg", "2.jpg"]
    from spfpn.data.images import open_images

    assert open_images("coco-val").ids == ("1.jpg", "2.jpg")
    assert "2 of 2" in run().output


def test_what_is_there_is_never_replaced(coco, publisher, tmp_path):
    folder = coco.path(tmp_path)
    folder.mkdir(parents=True)
    (folder / "mine.jpg").touch()
    done = run("coco-val", "--data-dir", tmp_path)
    assert done.exit_code == 2 and "there already, with 1 of 2 images" in done.output
    assert [path.name for path in folder.iterdir()] == ["mine.jpg"] and not publisher.asked


def test_without_a_network_address_and_place_are_named(coco, tmp_path, monkeypatch):
    gone = replace(coco, files=(RemoteFile("http://127.0.0.1:9/val2017.zip"),))
    monkeypatch.setitem(DATA_SETS, "coco-val", gone)
    done = run("coco-val", "--data-dir", tmp_path)
    assert done.exit_code == 2 and "Traceback" not in done.output
    assert "no connection" in done.output and "license: Flickr's terms" in done.output
    assert f"place:   {tmp_path / 'downloads'}" in " ".join(done.output.split("\n"))
    assert not coco.path(tmp_path).exists()


def test_an_archive_put_there_by_hand_is_used_and_kept(coco, publisher, tmp_path):
    by_hand = tmp_path / "downloads" / "a.zip"
    by_hand.parent.mkdir()
    by_hand.write_bytes(publisher.content)
    fetch_dataset(coco, tmp_path)
    assert count_images(coco, tmp_path) == 2 and by_hand.is_file() and not publisher.asked


@pytest.mark.parametrize("fault", ["evil", "too few"])
def test_a_data_set_is_there_as_a_whole_or_not_at_all(fault, coco, publisher, tmp_path):
    names = ("val2017/1.jpg", "../2.jpg") if fault == "evil" else ("val2017/1.jpg",)
    publisher.content = zip_of(*names)
    wrong = replace(coco, files=(remote(publisher),))
    reason = "leads out of the folder" if fault == "evil" else "hold 1 images, not 2"
    with pytest.raises(DownloadError, match=reason):
        fetch_dataset(wrong, tmp_path)
    assert not list(tmp_path.rglob("*.jpg")) and not coco.path(tmp_path).exists()


def test_an_unknown_checksum_is_printed(coco, publisher, tmp_path):
    said: list[str] = []
    fetch_dataset(replace(coco, files=(remote(publisher, known=False),)), tmp_path, said.append)
    assert f"its sha256 is {hashlib.sha256(publisher.content).hexdigest()}" in said[0]


def test_oxfords_archives_become_hpatches_layout(publisher, tmp_path, monkeypatch):
    members = [f"img{k}.ppm" for k in range(1, 7)] + [f"H1to{k}p" for k in range(2, 7)]
    publisher.content = tar_of(*map(tarfile.TarInfo, [*members, "readme"]))
    oxford = DATA_SETS["oxford-affine"]
    served = [replace(f, address=f"{publisher.address}/{f.name}", sha256="") for f in oxford.files]
    made = fetch_dataset(replace(oxford, files=tuple(served)), tmp_path)
    found = sorted(path.name for path in (made / "v_graffiti").iterdir())
    assert found == [f"{k}.ppm" for k in range(1, 7)] + [f"H_1_{k}" for k in range(2, 7)]
    assert len(list(made.iterdir())) == 8


@pytest.mark.parametrize(
    "arguments, said",
    [
        (("nothing",), "'nothing': no such data set. Choose one of hpatches"),
        (("hpatches",), "no data folder is set"),
        (("scannet-1500", "--data-dir", "here"), "page:    https://github.com/ScanNet/ScanNet"),
    ],
)
def test_what_cannot_be_fetched_says_what_to_do(arguments, said, monkeypatch):
    monkeypatch.delenv("DATA_DIR", raising=False)
    done = run(*arguments)
    assert done.exit_code == 2 and said in done.output and "Traceback" not in done.output


def test_the_list_needs_no_data_folder(monkeypatch):
    monkeypatch.delenv("DATA_DIR", raising=False)
    done = run()
    assert done.exit_code == 0 and "No data folder is set" in done.output
    assert all(name in done.output for name in DATA_SETS)

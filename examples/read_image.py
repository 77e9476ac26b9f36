#!/usr/bin/env python3
"""Reads an image with nothing but Python's standard library: design/image-format.md as a program.

    read_image.py IMAGE                             check header and catalogue, list the processes
    read_image.py IMAGE --check all                 check every chunk as well; or some: --check 0,2
    read_image.py IMAGE --frame 43                  a frame of physical memory
    read_image.py IMAGE --pid 3 --read 0x10000:64   memory of a process, by way of its page tables

Hashing a megabyte takes half a second here: without --check only chunks that are looked into are hashed.
"""
import argparse, functools, json, os, pathlib, re, signal, sqlite3, struct, sys

FRAME = 4096
M = (1 << 64) - 1
P1, P2, P3, P4 = 0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x85EBCA77C2B2AE63

def need(condition, what):
    if not condition:
        sys.exit(f"read_image.py: {what}")

def rotl(x, r):
    return (x << r | x >> 64 - r) & M

def step(lane, word):
    return rotl((lane + word * P2) & M, 31) * P1 & M

def xxh64(data):  # of 32 bytes or more, a multiple of 8: all that is hashed here
    whole = len(data) & -32
    a, b, c, d = (P1 + P2) & M, P2, 0, -P1 & M
    for w, x, y, z in struct.iter_unpack("<4Q", data[:whole]):
        a, b, c, d = step(a, w), step(b, x), step(c, y), step(d, z)
    h = (rotl(a, 1) + rotl(b, 7) + rotl(c, 12) + rotl(d, 18)) & M
    for lane in (a, b, c, d):
        h = ((h ^ step(0, lane)) * P1 + P4) & M
    h = (h + len(data)) & M
    for word, in struct.iter_unpack("<Q", data[whole:]):
        h = (rotl(h ^ step(0, word), 27) * P1 + P4) & M
    h = (h ^ h >> 33) * P2 & M
    h = (h ^ h >> 29) * P3 & M
    return h ^ h >> 32

def lz4_block(source, length):
    out, at = bytearray(), 0
    def more(count):  # a count of 15 goes on in the bytes that follow, up to the first that is not 255
        nonlocal at
        going = count == 15
        while going:
            count, going, at = count + source[at], source[at] == 255, at + 1
        return count
    while len(out) <= length:
        token, at = source[at], at + 1
        literals = more(token >> 4)
        out += source[at:at + literals]
        at += literals
        if at >= len(source):
            break
        distance, at = source[at] | source[at + 1] << 8, at + 2
        match = more(token & 15) + 4
        need(0 < distance <= len(out), "a match begins before the data")
        out += (out[-distance:] * (match // distance + 1))[:match]
    return bytes(out)

class Image:
    def __init__(self, path):
        self.blob = open(pathlib.Path(path, "blob"), "rb")
        catalogue = pathlib.Path(path, "catalogue.sqlite").resolve()
        page, data = self.blob.read(FRAME), catalogue.read_bytes()
        need(page[:4] == b"HBRN" and len(page) == FRAME, "not an image, or one that was never completed")
        version, _, size, _, self.ram, chunks, blob_bytes, bytes_, hash_, frames = struct.unpack_from("<III16sIIQQQI", page, 4)
        need(version == 1, f"format version {version}, and this program reads version 1")
        need(size == FRAME and struct.unpack_from("<Q", page, 4088)[0] == xxh64(page[:4088]), "the header is damaged")
        need(os.fstat(self.blob.fileno()).st_size == blob_bytes, "the blob has another length than the header says")
        need(len(data) == bytes_, "the catalogue has another length than the header says")
        need(xxh64(data) == hash_, "the catalogue is damaged")
        self.sql = sqlite3.connect(f"{catalogue.as_uri()}?immutable=1", uri=True).execute
        self.chunks = {row[0]: row[1:] for row in self.sql("SELECT id, offset, stored, payload, frames, codec, hash FROM chunk")}
        total, = self.sql("SELECT (SELECT total(frames) FROM extent) + (SELECT total(frames) FROM reference)").fetchone()
        need(len(self.chunks) == chunks and total == frames, "the catalogue does not agree with the header")

    @functools.cache
    def chunk(self, number):
        need(number in self.chunks, f"there is no chunk {number}")
        offset, stored, payload, frames, codec, digest = self.chunks[number]
        self.blob.seek(offset)
        data = self.blob.read(stored)
        need(len(data) == stored and xxh64(data) == digest & M, f"chunk {number} is damaged")
        if codec == 1:
            need(struct.unpack_from("<I", data)[0] == frames * FRAME, f"chunk {number} claims another length")
            data = lz4_block(data[4:payload], frames * FRAME)
        need(len(data) == frames * FRAME, f"chunk {number} has another length than its row says")
        return data

    def frame(self, pfn):
        need(0 <= pfn < self.ram, f"frame {pfn} is beyond RAM")
        extent = self.sql("SELECT pfn, frames, chunk, first, fill FROM extent WHERE ? BETWEEN pfn AND pfn + frames - 1", (pfn,)).fetchone()
        if extent is None:
            return self.referenced(pfn)
        start, _, chunk, first, fill = extent
        at = 0 if chunk is None else (first + pfn - start) * FRAME
        return struct.pack("<q", fill) * (FRAME // 8) if chunk is None else self.chunk(chunk)[at:at + FRAME]

    def referenced(self, pfn):
        """A frame that is a page of a file of the host; zeros if it is none: it was free."""
        row = self.sql("SELECT pfn, path, page, hashes FROM reference WHERE ? BETWEEN pfn AND pfn + frames - 1", (pfn,)).fetchone()
        if row is None:
            return bytes(FRAME)
        start, path, page, hashes = row
        with open(path, "rb") as file:
            file.seek((page + pfn - start) * FRAME)
            data = file.read(FRAME).ljust(FRAME, b"\0")
        need(xxh64(data) == struct.unpack_from("<Q", hashes, (pfn - start) * 8)[0], f"page {page + pfn - start} of {path} has changed")
        return data

    def page(self, table, address):
        """The page that an address is in, by Sv39 page tables from the root, or None."""
        for level in (2, 1, 0):
            entry, = struct.unpack_from("<Q", self.frame(table), (address >> 12 + 9 * level & 511) * 8)
            if not entry & 1:  # V
                return None
            table = entry >> 10 & (1 << 44) - 1
            if entry & 14:  # R, W or X: a leaf; one above level 0 maps 2 MiB or 1 GiB
                return self.frame(table + (address >> 12 & (1 << 9 * level) - 1))

def dump(data, address):
    for at in range(0, len(data), 16):
        print(f"{address + at:08x}  {data[at:at + 16].hex(' ')}")

def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, kind in (("image", str), ("--check", str), ("--frame", int), ("--pid", int), ("--read", str)):
        parser.add_argument(name, type=kind)
    args = parser.parse_args()
    image = Image(args.image)
    checked = list(image.chunks if args.check == "all" else map(int, args.check.split(",") if args.check else ()))
    for number in checked:
        image.chunk(number)
    if checked:
        print(f"{len(checked)} of {len(image.chunks)} chunks checked: ok")
    processes = {row[0]: row[1:] for row in image.sql("SELECT pid, name, state, steps, detail FROM process ORDER BY pid")}
    if args.frame is not None:
        dump(image.frame(args.frame), args.frame * FRAME)
    elif not args.read:
        for pid, (name, state, steps, _) in processes.items():
            print(pid, name, state, int(steps))
    else:
        need(args.pid in processes, f"there is no process {args.pid}")
        need(re.fullmatch(r"(\d+|0x[0-9a-f]+):(\d+|0x[0-9a-f]+)", args.read), "give --read ADDRESS:LENGTH, such as 0x10000:64")
        address, length = (int(number, 0) for number in args.read.split(":"))
        root = json.loads(processes[args.pid][3])["root"]
        for at in range(address & -FRAME, address + length, FRAME):
            page, start, end = image.page(root, at), max(at, address), min(at + FRAME, address + length)
            print(f"{start:08x}  not mapped") if page is None else dump(page[start - at:end - at], start)

signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # whoever reads may stop
try:
    main()
except (OSError, ValueError, sqlite3.Error) as error:
    sys.exit(f"read_image.py: {error}")

#!/usr/bin/env python3
"""Reads an image with nothing but Python's standard library: design/image-format.md as a program.

    read_image.py IMAGE                             check header and catalogue, list the processes
    read_image.py IMAGE --check all                 check every chunk as well; or some: --check 0,2
    read_image.py IMAGE --frame 43                  a frame of physical memory
    read_image.py IMAGE --memory > ram              all of physical memory, as it is
    read_image.py IMAGE --pid 3 --read 0x10000:64   memory of a process, by way of its page tables
    read_image.py IMAGE --pid 3 --fd 4 > file       what is behind a file descriptor: a file, or what is in a pipe

IMAGE is the directory that hib save made, or the file that hib export wrote. Hashing a megabyte takes half a second here:
without --check only what is looked into is hashed.
"""
import argparse, functools, json, os, pathlib, re, signal, sqlite3, struct, sys, tempfile

FRAME = 4096
M = (1 << 64) - 1
PIECE = 65536
P1, P2, P3, P4 = 0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x85EBCA77C2B2AE63
P5 = 0x27D4EB2F165667C5

def need(condition, what):
    if not condition:
        sys.exit(f"read_image.py: {what}")

def rotl(x, r):
    return (x << r | x >> 64 - r) & M

def step(lane, word):
    return rotl((lane + word * P2) & M, 31) * P1 & M

def xxh64(data):  # of a multiple of 8 bytes: all that is hashed here
    whole = len(data) & -32
    a, b, c, d = (P1 + P2) & M, P2, 0, -P1 & M
    for w, x, y, z in struct.iter_unpack("<4Q", data[:whole]):
        a, b, c, d = step(a, w), step(b, x), step(c, y), step(d, z)
    h = (rotl(a, 1) + rotl(b, 7) + rotl(c, 12) + rotl(d, 18)) & M
    for lane in (a, b, c, d):
        h = ((h ^ step(0, lane)) * P1 + P4) & M
    h = (h + len(data) if whole else P5 + len(data)) & M
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
    def __init__(self, path, children=()):
        path = pathlib.Path(path).resolve()
        whole = path.is_file()  # one object: its header is its last page
        self.blob = open(path if whole else path / "blob", "rb")
        size = os.fstat(self.blob.fileno()).st_size
        page = self.at(max(0, size - FRAME) if whole else 0, FRAME)
        need(page[:4] == b"HBRN" and len(page) == FRAME, "not an image, or one that was never completed")
        version, self.machine_version, header_bytes = struct.unpack_from("<III", page, 4)
        need(version == 2, f"format version {version}, and this program reads version 2")
        need(header_bytes == FRAME and struct.unpack_from("<Q", page, 4088)[0] == xxh64(page[:4088]), "the header is damaged")
        incompatible, _, *algorithms = struct.unpack_from("<6I", page, 32)
        need(incompatible & 1 == 0, "the image is encrypted, and Python has no AES in its library: read it with hib, which takes the key")
        need(incompatible & ~2 == 0, f"the image has features that this program does not know ({incompatible:#x})")
        need(algorithms == [1, 12, 1, 1], "the image has hashes, frames or page tables of another kind")
        state, chunks, self.ram, frames, end, where, length, hash_, head, head_hash, time = struct.unpack_from("<IIQQQQQQQQd", page, 56)
        known = 320 if incompatible & 2 else 256  # with a parent, that one's id and the hashes of its catalogue
        need(not any(page[136:160]) and not any(page[280:288]) and not any(page[known:4088]) and state <= whole, "the image has something where nothing is known")
        need(abs(time) <= 8.64e15 and where == (end if whole else 0), "the header contradicts itself")
        need(size == (end + -(-length // FRAME) * FRAME + FRAME if whole else end), "the blob has another length than the header says")
        data = self.at(where, length) if whole else (path / "catalogue.sqlite").read_bytes()
        need(len(data) == length, "the catalogue has another length than the header says")
        need(xxh64(data) == hash_ and head <= length, "the catalogue is damaged")
        file = path / "catalogue.sqlite"
        if whole:
            self.file = tempfile.NamedTemporaryFile()
            self.file.write(data), self.file.flush()
            file = pathlib.Path(self.file.name)
        self.sql = sqlite3.connect(f"{file.resolve().as_uri()}?immutable=1", uri=True).execute
        self.sql("PRAGMA trusted_schema = OFF")
        strange = self.sql("SELECT count(*) FROM sqlite_schema WHERE type <> 'table' AND sql IS NOT NULL OR sql LIKE 'CREATE VIRTUAL%'").fetchone()
        ids = [self.sql(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")]
        need(ids == [0x4842524E, 2] and strange == (0,), "the catalogue is not one of an image")
        self.regions = self.sql("SELECT pfn, frames FROM region ORDER BY pfn").fetchall()
        self.chunks = {row[0]: row[1:] for row in self.sql("SELECT id, offset, stored, payload, frames, codec, hash, pieces FROM chunk")}
        total, = self.sql("SELECT total(frames) FROM extent").fetchone()
        ram = sum(count for _, count in self.regions)
        need(len(self.chunks) == chunks and total == frames and ram == self.ram, "the catalogue does not agree with the header")
        need(self.sql("SELECT count(*) FROM extent WHERE kind NOT IN (0, 1, 2, 4) AND (kind <> 3 OR ?)", (not incompatible & 2,)).fetchone() == (0,), "there are extents of an unknown kind")
        within = "SELECT 1 FROM region WHERE region.pfn <= extent.pfn AND extent.pfn + extent.frames <= region.pfn + region.frames"
        need(self.sql(f"SELECT count(*) FROM extent WHERE NOT EXISTS ({within})").fetchone() == (0,), "there are extents beyond RAM")
        need(all(codec in (0, 1) for *_, codec, _, _ in self.chunks.values()), "there are chunks with an unknown codec")
        need(page[16:32] not in children, "the images' parents go in a circle")
        self.parent = self.find(path.parent, page[256:280], (*children, page[16:32])) if incompatible & 2 else None

    def find(self, directory, parent, children):
        """The image beside this one that has the frames which have not changed since."""
        for other in sorted(directory.glob("*/blob")):
            header = other.open("rb").read(FRAME)
            if header[16:32] == parent[:16] and header[104:112] == parent[16:]:
                return Image(other.parent, children)
        need(False, f"the parent (id {parent[:16].hex()}) is not in {directory}")

    def at(self, offset, length):
        self.blob.seek(offset)
        return self.blob.read(length)

    def stored(self, number, first, length):
        """Bytes of a chunk from a multiple of 64 KiB on, checked; the chunk's pieces must have been."""
        need(number in self.chunks, f"there is no chunk {number}")
        offset, stored, _, _, _, digest, pieces = self.chunks[number]
        need(xxh64(pieces) == digest & M, f"the hashes of chunk {number} are damaged")
        data = self.at(offset + first, min(length, stored - first))
        for at in range(0, len(data), PIECE):
            expected, = struct.unpack_from("<Q", pieces, (first + at) // PIECE * 8)
            need(xxh64(data[at:at + PIECE]) == expected, f"chunk {number} is damaged")
        return data

    @functools.cache
    def chunk(self, number):
        data = self.stored(number, 0, 1 << 30)
        _, stored, payload, frames, codec, *_ = self.chunks[number]
        need(len(data) == stored, f"chunk {number} is not whole")
        if codec == 1:
            need(struct.unpack_from("<I", data)[0] == frames * FRAME, f"chunk {number} claims another length")
            data = lz4_block(data[4:payload], frames * FRAME)
        need(len(data) == frames * FRAME, f"chunk {number} has another length than its row says")
        return data

    @functools.cache
    def piece(self, number, first):
        return self.stored(number, first, PIECE)

    def place(self, number, place):
        """A frame of a chunk; of a raw one no more is read than the 64 KiB around it."""
        if self.chunks[number][4] == 0:
            at = place * FRAME % PIECE
            return self.piece(number, place * FRAME - at)[at:at + FRAME]
        return self.chunk(number)[place * FRAME:place * FRAME + FRAME]

    def frame(self, pfn):
        need(any(first <= pfn < first + count for first, count in self.regions), f"frame {pfn} is beyond RAM")
        row = self.sql("SELECT pfn, frames, kind, chunk, first, fill FROM extent WHERE pfn <= ? ORDER BY pfn DESC LIMIT 1", (pfn,)).fetchone()
        if row is None or pfn >= row[0] + row[1] or row[2] == 4:
            return bytes(FRAME)  # it was free, or is a hole
        start, _, kind, chunk, first, fill = row
        if kind == 3:
            return self.parent.frame(pfn)
        if kind == 0:
            need(chunk in self.chunks and first + pfn - start < self.chunks[chunk][3], f"frame {pfn} is in no chunk")
            return self.place(chunk, first + pfn - start)
        return struct.pack("<q", fill) * (FRAME // 8) if kind == 1 else self.referenced(start, pfn)

    def referenced(self, start, pfn):
        """A frame that is a page of a file of the host."""
        path, page, hashes = self.sql("SELECT path, page, hashes FROM reference WHERE pfn = ?", (start,)).fetchone()
        with open(path, "rb") as file:
            file.seek((page + pfn - start) * FRAME)
            data = file.read(FRAME).ljust(FRAME, b"\0")
        need(xxh64(data) == struct.unpack_from("<Q", hashes, (pfn - start) * 8)[0], f"page {page + pfn - start} of {path} has changed")
        return data

    def leaf(self, table, address):
        """The frame that an address is in, by Sv39 page tables from the root, or None."""
        for level in (2, 1, 0) if table else ():
            entry, = struct.unpack_from("<Q", self.frame(table), (address >> 12 + 9 * level & 511) * 8)
            table = entry >> 10 & (1 << 44) - 1
            if entry & (14 | 512):  # R, W, X, or parked: a leaf; one above level 0 maps 2 MiB or 1 GiB
                return table + (address >> 12 & (1 << 9 * level) - 1)
            if not entry & 1:  # V
                return None
        return None

    def object_page(self, number, page):
        """The frame that has a page of a memory object, or None."""
        row = self.sql("SELECT pfn + ? - page FROM object WHERE object = ? AND ? BETWEEN page AND page + pages - 1", (page, number, page)).fetchone()
        return row and row[0]

    def contents(self, fd):
        """What is behind a file descriptor: the bytes of its file, or those that are in its pipe."""
        if fd["pipe"] is not None:
            ring = self.frame(fd["frame"])
            return bytes(ring[(fd["start"] + i) % FRAME] for i in range(fd["filled"]))
        need(fd.get("object") is not None, f"there are no bytes behind fd {fd['fd']}")
        data = bytearray()
        for number in range(-(-int(fd["size"]) // FRAME)):
            pfn = self.object_page(fd["object"], number)
            if pfn is None and fd["host"]:
                with open(fd["path"], "rb") as file:
                    file.seek(number * FRAME)
                    data += file.read(FRAME).ljust(FRAME, b"\0")
            else:
                data += bytes(FRAME) if pfn is None else self.frame(pfn)
        return bytes(data[:int(fd["size"])])

    def page(self, process, address):
        """The page that an address is in: its bytes, or what else is there."""
        pfn = self.leaf(process["root"], address)
        area = next((a for a in process["areas"] if (a["limit"] or a["start"]) <= address < a["end"]), None)
        if pfn is None and area and area["object"]:
            number = area["offset"] + (address - area["start"]) // FRAME
            pfn = self.object_page(area["object"], number)
            if pfn is None:
                return f"page {number} of {area['path']}" if area["path"] else "zeros"
        if pfn is not None:
            return self.frame(pfn)
        return "zeros" if area and area["demandZero"] else "not mapped"

def dump(data, address):
    for at in range(0, len(data), 16):
        print(f"{address + at:08x}  {data[at:at + 16].hex(' ')}")

def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, kind in (("image", str), ("--check", str), ("--frame", int), ("--pid", int), ("--fd", int)):
        parser.add_argument(name, type=kind)
    parser.add_argument("--read", action="append", default=[], help="may be given again")
    parser.add_argument("--memory", action="store_true")
    args = parser.parse_args()
    image = Image(args.image)
    checked = list(image.chunks if args.check == "all" else map(int, args.check.split(",") if args.check else ()))
    for number in checked:
        image.chunk(number)
    if checked:
        count, total, parent = len(checked), len(image.chunks), image.parent
        while parent:  # all of an image's frames are checked only with those of its ancestors
            for number in parent.chunks if args.check == "all" else ():
                parent.chunk(number)
                count += 1
            total, parent = total + len(parent.chunks), parent.parent
        print(f"{count} of {total} chunks checked: ok")
    processes = {row[0]: row[1:] for row in image.sql("SELECT pid, name, state, steps, detail FROM process ORDER BY pid")}
    if args.frame is not None:
        dump(image.frame(args.frame), args.frame * FRAME)
    elif args.memory:
        for first, count in image.regions:
            for pfn in range(first, first + count):
                sys.stdout.buffer.write(image.frame(pfn))
    elif args.fd is not None:
        need(args.pid in processes, f"there is no process {args.pid}")
        fd = next((fd for fd in json.loads(processes[args.pid][3])["fds"] if fd["fd"] == args.fd), None)
        need(fd is not None, f"process {args.pid} has no fd {args.fd}")
        sys.stdout.buffer.write(image.contents(fd))
    elif not args.read:
        for pid, (name, state, steps, _) in processes.items():
            print(pid, name, state, int(steps))
    else:
        need(args.pid in processes, f"there is no process {args.pid}")
        process = json.loads(processes[args.pid][3])
        for what in args.read:
            need(re.fullmatch(r"(\d+|0x[0-9a-f]+):(\d+|0x[0-9a-f]+)", what), "give --read ADDRESS:LENGTH, such as 0x10000:64")
            address, length = (int(number, 0) for number in what.split(":"))
            for at in range(address & -FRAME, address + length, FRAME):
                page, start, end = image.page(process, at), max(at, address), min(at + FRAME, address + length)
                print(f"{start:08x}  {page}") if isinstance(page, str) else dump(page[start - at:end - at], start)

signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # whoever reads may stop
try:
    main()
except (OSError, ValueError, sqlite3.Error) as error:
    sys.exit(f"read_image.py: {error}")

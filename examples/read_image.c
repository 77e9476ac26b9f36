/*
 * Reads an image: design/image-format.md as a program. Needs SQLite (3.38 or later) and nothing else:
 *
 *     cc -O2 -o read_image read_image.c -lsqlite3
 *
 *     read_image IMAGE                             check header and catalogue, list the processes
 *     read_image IMAGE --check                     check every chunk as well
 *     read_image IMAGE --frame 43                  a frame of physical memory
 *     read_image IMAGE --memory > ram              all of physical memory, as it is
 *     read_image IMAGE --pid 3 --read 0x10000:64   memory of a process, by way of its page tables; --read may be given again
 *
 * IMAGE is the directory that hib save made, or the file that hib export wrote.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <sqlite3.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define FRAME 4096
#define PIECE 65536
#define CHUNK_MOST (256 * FRAME)

typedef uint8_t u8;
typedef uint32_t u32;
typedef uint64_t u64;

static void need(int condition, const char *format, ...) {
  if (condition) return;
  va_list list;
  va_start(list, format);
  fputs("read_image: ", stderr);
  vfprintf(stderr, format, list);
  fputc('\n', stderr);
  exit(1);
}

static void *room(u64 bytes) {
  void *found = bytes < (u64)1 << 40 ? calloc(1, bytes ? bytes : 1) : NULL;
  need(found != NULL, "there is no memory for %llu bytes", (unsigned long long)bytes);
  return found;
}

static u64 word(const u8 *at, int bytes) { /* little endian, on any host */
  u64 value = 0;
  while (bytes-- > 0) value = value << 8 | at[bytes];
  return value;
}
static u32 u32_at(const u8 *at) { return (u32)word(at, 4); }
static u64 u64_at(const u8 *at) { return word(at, 8); }

/* XXH64 with seed 0 */

static const u64 P1 = 0x9E3779B185EBCA87, P2 = 0xC2B2AE3D27D4EB4F, P3 = 0x165667B19E3779F9, P4 = 0x85EBCA77C2B2AE63,
                 P5 = 0x27D4EB2F165667C5;

static u64 rotl(u64 x, int r) { return x << r | x >> (64 - r); }
static u64 step(u64 lane, u64 value) { return rotl(lane + value * P2, 31) * P1; }

static u64 xxh64(const u8 *data, u64 length) {
  const u8 *end = data + length;
  u64 h = P5;
  if (length >= 32) {
    u64 lanes[4] = {P1 + P2, P2, 0, 0 - P1};
    for (; end - data >= 32; data += 32)
      for (int i = 0; i < 4; i++) lanes[i] = step(lanes[i], u64_at(data + 8 * i));
    h = rotl(lanes[0], 1) + rotl(lanes[1], 7) + rotl(lanes[2], 12) + rotl(lanes[3], 18);
    for (int i = 0; i < 4; i++) h = (h ^ step(0, lanes[i])) * P1 + P4;
  }
  h += length;
  for (; end - data >= 8; data += 8) h = rotl(h ^ step(0, u64_at(data)), 27) * P1 + P4;
  if (end - data >= 4) {
    h = rotl(h ^ u32_at(data) * P1, 23) * P2 + P3;
    data += 4;
  }
  for (; data < end; data++) h = rotl(h ^ *data * P5, 11) * P1;
  h = (h ^ h >> 33) * P2;
  h = (h ^ h >> 29) * P3;
  return h ^ h >> 32;
}

/* LZ4 block; returns how many bytes came out, or -1. It never leaves its buffers. */

static long lz4_block(const u8 *in, u64 in_length, u8 *out, u64 out_length) {
  u64 i = 0, o = 0;
  while (i < in_length) {
    u8 token = in[i++];
    u64 count = token >> 4;
    for (u8 more = 255; count >= 15 && more == 255; count += more) {
      if (i >= in_length) return -1;
      more = in[i++];
    }
    if (count > in_length - i || count > out_length - o) return -1;
    memcpy(out + o, in + i, count);
    i += count;
    o += count;
    if (i == in_length) return (long)o; /* it ends after literals */
    if (in_length - i < 2) return -1;
    u64 distance = word(in + i, 2);
    i += 2;
    count = token & 15;
    for (u8 more = 255; count >= 15 && more == 255; count += more) {
      if (i >= in_length) return -1;
      more = in[i++];
    }
    count += 4;
    if (distance == 0 || distance > o || count > out_length - o) return -1;
    for (; count > 0; count--, o++) out[o] = out[o - distance];
  }
  return -1;
}

/* The image */

struct chunk {
  u64 offset, stored, payload, frames, codec, hash;
  u8 pieces[CHUNK_MOST / PIECE * 8];
  u64 piece_bytes;
};
struct extent {
  u64 pfn, frames, kind, chunk, first, fill;
};
struct region {
  u64 pfn, frames;
};

/* An image, its parent, that one's parent, and so on; `image` is the one that is looked at. */
enum { IMAGES = 64 };
static struct image {
  int blob, has_parent;
  u8 id[16];
  sqlite3 *sql;
  u64 chunk_count, extent_count, region_count;
  struct chunk *chunks;
  struct extent *extents;
  struct region *regions;
} images[IMAGES], *image = images;

static void read_at(int file, u8 *to, u64 length, u64 offset) {
  while (length > 0) {
    ssize_t count = pread(file, to, length, (off_t)offset);
    need(count > 0, count < 0 ? strerror(errno) : "the blob ends too early");
    to += count, length -= (u64)count, offset += (u64)count;
  }
}

static int open_file(const char *path) {
  int file = open(path, O_RDONLY);
  need(file >= 0, "%s: %s", path, strerror(errno));
  return file;
}

static u64 size_of(int file) {
  struct stat found;
  need(fstat(file, &found) == 0 && S_ISREG(found.st_mode), "not a file");
  return (u64)found.st_size;
}

static sqlite3_stmt *query(const char *text) {
  sqlite3_stmt *statement;
  need(sqlite3_prepare_v2(image->sql, text, -1, &statement, NULL) == SQLITE_OK, "catalogue: %s", sqlite3_errmsg(image->sql));
  return statement;
}

static int row(sqlite3_stmt *statement) {
  int result = sqlite3_step(statement);
  need(result == SQLITE_ROW || result == SQLITE_DONE, "catalogue: %s", sqlite3_errmsg(image->sql));
  if (result == SQLITE_DONE) sqlite3_finalize(statement);
  return result == SQLITE_ROW;
}

static u64 column(sqlite3_stmt *statement, int i) { return (u64)sqlite3_column_int64(statement, i); }

static u64 number_of(const char *text) {
  sqlite3_stmt *statement = query(text);
  need(row(statement), "the catalogue lacks a row");
  u64 value = column(statement, 0);
  sqlite3_finalize(statement);
  return value;
}

static char *joined(const char *directory, const char *name) {
  char *path = room(strlen(directory) + strlen(name) + 2);
  sprintf(path, "%s/%s", directory, name);
  return path;
}

static int any(const u8 *bytes, u64 length) {
  while (length > 0 && bytes[length - 1] == 0) length--;
  return length > 0;
}

static void read_tables(u64 chunks, u64 frames, u64 ram) {
  need(number_of("PRAGMA application_id") == 0x4842524e && number_of("PRAGMA user_version") == 2,
       "the catalogue is not one of an image");
  need(number_of("SELECT count(*) FROM sqlite_schema WHERE type <> 'table' AND sql IS NOT NULL OR sql LIKE 'CREATE VIRTUAL%'") == 0,
       "the catalogue has views or triggers");
  image->chunk_count = number_of("SELECT count(*) FROM chunk");
  need(image->chunk_count == chunks, "the catalogue does not agree with the header: chunks");
  image->chunks = room(chunks * sizeof *image->chunks);
  sqlite3_stmt *found = query("SELECT id, offset, stored, payload, frames, codec, hash, pieces FROM chunk ORDER BY id");
  for (u64 i = 0; row(found); i++) {
    struct chunk *c = &image->chunks[i];
    need(i < chunks && column(found, 0) == i, "the ids of chunks are not 0 to %llu", (unsigned long long)chunks - 1);
    *c = (struct chunk){column(found, 1), column(found, 2), column(found, 3), column(found, 4), column(found, 5), column(found, 6), {0}, 0};
    need(c->codec <= 1, "chunk %llu has an unknown codec", (unsigned long long)i);
    need(c->frames >= 1 && c->frames <= 256 && c->stored >= 1 && c->stored <= CHUNK_MOST && c->payload <= c->stored,
         "the row of chunk %llu is out of range", (unsigned long long)i);
    c->piece_bytes = (c->stored + PIECE - 1) / PIECE * 8;
    need((u64)sqlite3_column_bytes(found, 7) == c->piece_bytes, "chunk %llu lacks hashes", (unsigned long long)i);
    memcpy(c->pieces, sqlite3_column_blob(found, 7), c->piece_bytes);
    need(xxh64(c->pieces, c->piece_bytes) == c->hash, "the hashes of chunk %llu are damaged", (unsigned long long)i);
  }
  image->extent_count = number_of("SELECT count(*) FROM extent");
  image->extents = room(image->extent_count * sizeof *image->extents);
  u64 total = 0, free = 0;
  found = query("SELECT pfn, frames, kind, chunk, first, fill FROM extent ORDER BY pfn");
  for (u64 i = 0; row(found); i++) {
    struct extent *e = &image->extents[i];
    *e = (struct extent){column(found, 0), column(found, 1), column(found, 2), column(found, 3), column(found, 4), column(found, 5)};
    need(e->kind <= 2 || e->kind == 4 || (e->kind == 3 && image->has_parent), "the extent at frame %llu is of an unknown kind", (unsigned long long)e->pfn);
    need(e->pfn >= free && e->frames >= 1 && e->frames <= ram, "the extents overlap at frame %llu", (unsigned long long)e->pfn);
    need(e->kind != 0 || (e->chunk < chunks && e->first < 256 && e->first + e->frames <= image->chunks[e->chunk].frames),
         "the extent at frame %llu is not within its chunk", (unsigned long long)e->pfn);
    free = e->pfn + e->frames;
    total += e->frames;
  }
  need(total == frames, "the catalogue does not agree with the header: frames");
  image->region_count = number_of("SELECT count(*) FROM region");
  image->regions = room(image->region_count * sizeof *image->regions);
  total = 0;
  found = query("SELECT pfn, frames FROM region ORDER BY pfn");
  for (u64 i = 0; row(found); i++) {
    image->regions[i] = (struct region){column(found, 0), column(found, 1)};
    total += image->regions[i].frames;
  }
  need(total == ram, "the catalogue does not agree with the header: RAM");
  for (u64 i = 0, r = 0; i < image->extent_count; i++) {
    struct extent *e = &image->extents[i];
    while (r < image->region_count && image->regions[r].pfn + image->regions[r].frames < e->pfn + e->frames) r++;
    need(r < image->region_count && image->regions[r].pfn <= e->pfn, "the extent at frame %llu is beyond RAM", (unsigned long long)e->pfn);
  }
}

static void open_parent(const char *path, const u8 *parent);

static void open_image(const char *path) {
  struct stat found;
  int result = stat(path, &found);
  need(result == 0, "%s: %s", path, strerror(errno));
  int object = !S_ISDIR(found.st_mode); /* one object: its header is its last page */
  image->blob = open_file(object ? path : joined(path, "blob"));
  u64 size = size_of(image->blob);
  u8 page[FRAME];
  need(size >= FRAME, "not an image: the blob is too short");
  read_at(image->blob, page, FRAME, object ? size - FRAME : 0);
  need(memcmp(page, "HBRN", 4) == 0, "not an image, or one that was never completed");
  need(u32_at(page + 4) == 2, "format version %u, and this program reads version 2", u32_at(page + 4));
  need(u32_at(page + 12) == FRAME && xxh64(page, 4088) == u64_at(page + 4088), "the header is damaged");
  need((u32_at(page + 32) & 1) == 0, "the image is encrypted, and this program has no cipher: read it with hib, which takes the key");
  need((u32_at(page + 32) & ~2u) == 0, "the image has features that this program does not know (0x%x)", u32_at(page + 32));
  need(u32_at(page + 40) == 1 && u32_at(page + 44) == 12 && u32_at(page + 48) == 1 && u32_at(page + 52) == 1,
       "the image has hashes, frames or page tables of another kind");
  image->has_parent = u32_at(page + 32) == 2; /* its id, and the hashes of its catalogue */
  memcpy(image->id, page + 16, 16);
  u64 known = image->has_parent ? 320 : 256;
  need(!any(page + 136, 24) && !any(page + 280, 8) && !any(page + known, 4088 - known) && u32_at(page + 56) <= (u32)object,
       "the image has something where nothing is known");
  u64 chunks = u32_at(page + 60), ram = u64_at(page + 64), frames = u64_at(page + 72), end = u64_at(page + 80);
  u64 where = u64_at(page + 88), length = u64_at(page + 96), hash = u64_at(page + 104);
  u64 time_word = u64_at(page + 128);
  double time;
  memcpy(&time, &time_word, 8);
  need(fabs(time) <= 8.64e15 && where == (object ? end : 0) && end <= size && length <= (u64)1 << 40, "the header contradicts itself");
  need(size == (object ? end + (length + FRAME - 1) / FRAME * FRAME + FRAME : end), "the blob has another length than the header says");

  int file = object ? image->blob : open_file(joined(path, "catalogue.sqlite"));
  need(object || size_of(file) == length, "the catalogue has another length than the header says");
  u8 *catalogue = sqlite3_malloc64(length ? length : 1);
  need(catalogue != NULL, "there is no memory for the catalogue");
  read_at(file, catalogue, length, where);
  need(xxh64(catalogue, length) == hash, "the catalogue is damaged");
  need(sqlite3_open(":memory:", &image->sql) == SQLITE_OK &&
           sqlite3_deserialize(image->sql, "main", catalogue, (sqlite3_int64)length, (sqlite3_int64)length,
                               SQLITE_DESERIALIZE_READONLY | SQLITE_DESERIALIZE_FREEONCLOSE) == SQLITE_OK,
       "SQLite cannot open the catalogue");
  sqlite3_db_config(image->sql, SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0, NULL);
  sqlite3_db_config(image->sql, SQLITE_DBCONFIG_DEFENSIVE, 1, NULL);
  read_tables(chunks, frames, ram);
  if (image->has_parent) open_parent(path, page + 256);
}

/* The image beside this one that has the frames which have not changed since. */
static void open_parent(const char *path, const u8 *parent) {
  need(image + 1 < images + IMAGES, "there are more than %d images in the chain", IMAGES);
  for (struct image *child = images; child <= image; child++)
    need(memcmp(child->id, parent, 16) != 0, "the images' parents go in a circle");
  char *real = realpath(path, NULL);
  need(real != NULL, "%s: %s", path, strerror(errno));
  *strrchr(real, '/') = 0;
  DIR *directory = opendir(*real ? real : "/");
  need(directory != NULL, "%s: %s", real, strerror(errno));
  for (struct dirent *entry; (entry = readdir(directory)) != NULL;) {
    char *other = joined(real, entry->d_name), *blob = joined(other, "blob");
    u8 header[FRAME];
    int file = open(blob, O_RDONLY | O_NONBLOCK);
    int found = file >= 0 && read(file, header, FRAME) == FRAME && memcmp(header + 16, parent, 16) == 0 &&
                memcmp(header + 104, parent + 16, 8) == 0;
    if (file >= 0) close(file);
    if (found) {
      image++;
      open_image(other);
      image = images;
      closedir(directory);
      return;
    }
    free(blob);
    free(other);
  }
  need(0, "the parent is not in %s", real);
}

/* Frames */

enum { CACHED = 64 };

/* The frames of a chunk, checked and decoded; good until CACHED others have been asked for. */
static const u8 *decoded(u64 id) {
  static struct {
    u64 key;
    u8 *data;
  } cache[CACHED];
  static u8 stored[CHUNK_MOST];
  struct chunk *c = &image->chunks[id];
  u64 key = id * IMAGES + (u64)(image - images);
  if (cache[id % CACHED].data != NULL && cache[id % CACHED].key == key) return cache[id % CACHED].data;
  if (cache[id % CACHED].data == NULL) cache[id % CACHED].data = room(CHUNK_MOST);
  u8 *data = cache[id % CACHED].data;
  cache[id % CACHED].key = key;
  read_at(image->blob, stored, c->stored, c->offset);
  for (u64 at = 0; at < c->stored; at += PIECE) {
    u64 length = c->stored - at < PIECE ? c->stored - at : PIECE;
    need(xxh64(stored + at, length) == u64_at(c->pieces + at / PIECE * 8), "chunk %llu is damaged", (unsigned long long)id);
  }
  if (c->codec == 0) {
    need(c->payload == c->frames * FRAME, "chunk %llu has another length than its row says", (unsigned long long)id);
    memcpy(data, stored, c->payload);
    return data;
  }
  need(c->payload > 4 && u32_at(stored) == c->frames * FRAME, "chunk %llu claims another length", (unsigned long long)id);
  long length = lz4_block(stored + 4, c->payload - 4, data, c->frames * FRAME);
  need(length == (long)(c->frames * FRAME), "chunk %llu cannot be decoded", (unsigned long long)id);
  return data;
}

/* A frame that is a page of a file of the host. */
static void referenced(const struct extent *e, u64 pfn, u8 *to) {
  sqlite3_stmt *found = query("SELECT path, page, hashes FROM reference WHERE pfn = ?");
  sqlite3_bind_int64(found, 1, (sqlite3_int64)e->pfn);
  need(row(found) && (u64)sqlite3_column_bytes(found, 2) == e->frames * 8, "frame %llu has no reference", (unsigned long long)pfn);
  int file = open_file((const char *)sqlite3_column_text(found, 0));
  u64 page = column(found, 1) + pfn - e->pfn;
  for (u64 done = 0; done < FRAME;) {
    ssize_t count = pread(file, to + done, FRAME - done, (off_t)(page * FRAME + done));
    if (count <= 0) break; /* zeros follow the file's end */
    done += (u64)count;
  }
  close(file);
  need(xxh64(to, FRAME) == u64_at((const u8 *)sqlite3_column_blob(found, 2) + (pfn - e->pfn) * 8), "page %llu of %s has changed",
       (unsigned long long)page, sqlite3_column_text(found, 0));
  sqlite3_finalize(found);
}

static void frame(u64 pfn, u8 *to) {
  u64 known = 0;
  for (u64 i = 0; i < image->region_count; i++) known |= pfn - image->regions[i].pfn < image->regions[i].frames;
  need(known, "frame %llu is beyond RAM", (unsigned long long)pfn);
  memset(to, 0, FRAME);
  u64 low = 0, high = image->extent_count; /* the last extent that begins at pfn or before */
  while (low < high) {
    u64 middle = (low + high) / 2;
    if (image->extents[middle].pfn <= pfn) low = middle + 1;
    else high = middle;
  }
  const struct extent *e = low == 0 ? NULL : &image->extents[low - 1];
  if (e == NULL || pfn - e->pfn >= e->frames || e->kind == 4) return; /* it was free, or is a hole */
  if (e->kind == 0) memcpy(to, decoded(e->chunk) + (e->first + pfn - e->pfn) * FRAME, FRAME);
  else if (e->kind == 2) referenced(e, pfn, to);
  else if (e->kind == 3) {
    image++;
    frame(pfn, to);
    image--;
  } else
    for (int i = 0; i < FRAME; i++) to[i] = (u8)(e->fill >> 8 * (i % 8));
}

/* Memory of a process */

/* The frame that an address is in, by Sv39 page tables from the root; 0 if there is none. */
static int leaf(u64 table, u64 address, u64 *pfn) {
  if (table == 0) return 0;
  for (int level = 2; level >= 0; level--) {
    u8 page[FRAME];
    frame(table, page);
    u64 entry = u64_at(page + 8 * (address >> (12 + 9 * level) & 511));
    table = entry >> 10 & (((u64)1 << 44) - 1);
    if (entry & (14 | 512)) { /* R, W, X, or parked: a leaf; one above level 0 maps 2 MiB or 1 GiB */
      *pfn = table + (address >> 12 & (((u64)1 << 9 * level) - 1));
      return 1;
    }
    if ((entry & 1) == 0) return 0;
  }
  return 0;
}

static void dump(const u8 *page, u64 from, u64 to, u64 address) {
  for (; from < to; from += 16, address += 16) {
    printf("%08llx ", (unsigned long long)address);
    for (u64 i = from; i < to && i < from + 16; i++) printf(" %02x", page[i]);
    putchar('\n');
  }
}

/* Prints `from` to `to` - 1 of the page at an address. */
static void print_page(u64 pid, u64 root, u64 address, u64 from, u64 to) {
  u8 page[FRAME];
  u64 pfn;
  int has = leaf(root, address, &pfn);
  sqlite3_stmt *area = query(
      "SELECT value ->> 'start', value ->> 'object', value ->> 'offset', value ->> 'path', value ->> 'demandZero' FROM process, "
      "json_each(process.detail, '$.areas') WHERE pid = ?1 AND ?2 < value ->> 'end' "
      "AND ?2 >= iif(value ->> 'limit' = 0, value ->> 'start', value ->> 'limit')");
  sqlite3_bind_int64(area, 1, (sqlite3_int64)pid);
  sqlite3_bind_int64(area, 2, (sqlite3_int64)address);
  int inside = row(area);
  u64 number = 0;
  if (!has && inside && column(area, 1) != 0) {
    number = column(area, 2) + (address - column(area, 0)) / FRAME;
    sqlite3_stmt *found = query("SELECT pfn + ?2 - page FROM object WHERE object = ?1 AND ?2 BETWEEN page AND page + pages - 1");
    sqlite3_bind_int64(found, 1, (sqlite3_int64)column(area, 1));
    sqlite3_bind_int64(found, 2, (sqlite3_int64)number);
    if ((has = row(found))) {
      pfn = column(found, 0);
      sqlite3_finalize(found);
    }
  }
  if (has) {
    frame(pfn, page);
    dump(page, from, to, address + from);
  } else {
    printf("%08llx  ", (unsigned long long)(address + from));
    if (inside && column(area, 1) != 0 && sqlite3_column_type(area, 3) != SQLITE_NULL)
      printf("page %llu of %s\n", (unsigned long long)number, sqlite3_column_text(area, 3));
    else puts(inside && (column(area, 1) != 0 || column(area, 4) != 0) ? "zeros" : "not mapped");
  }
  if (inside) sqlite3_finalize(area);
}

static void print_process(u64 pid, const char *what) {
  char *end;
  u64 address = strtoull(what, &end, 0);
  need(*end == ':', "give --read ADDRESS:LENGTH, such as 0x10000:64");
  u64 length = strtoull(end + 1, &end, 0);
  need(*end == 0, "give --read ADDRESS:LENGTH, such as 0x10000:64");
  sqlite3_stmt *found = query("SELECT detail ->> 'root' FROM process WHERE pid = ?");
  sqlite3_bind_int64(found, 1, (sqlite3_int64)pid);
  need(row(found), "there is no process %llu", (unsigned long long)pid);
  u64 root = column(found, 0);
  sqlite3_finalize(found);
  for (u64 at = address & ~(u64)(FRAME - 1); at < address + length; at += FRAME)
    print_page(pid, root, at, at < address ? address - at : 0, at + FRAME > address + length ? address + length - at : FRAME);
}

int main(int count, char **arguments) {
  const char *path = NULL, *number = NULL, *pid = NULL, **reads = room((u64)count * sizeof *reads);
  int check = 0, memory = 0, read_count = 0;
  for (int i = 1; i < count; i++) {
    const char *argument = arguments[i];
    const char *value = i + 1 < count ? arguments[i + 1] : NULL;
    if (strcmp(argument, "--check") == 0) check = 1;
    else if (strcmp(argument, "--memory") == 0) memory = 1;
    else if (value != NULL && strcmp(argument, "--frame") == 0) number = value, i++;
    else if (value != NULL && strcmp(argument, "--pid") == 0) pid = value, i++;
    else if (value != NULL && strcmp(argument, "--read") == 0) reads[read_count++] = value, i++;
    else if (path == NULL && argument[0] != '-') path = argument;
    else need(0, "usage: read_image IMAGE [--check] [--frame N | --memory | --pid N --read ADDRESS:LENGTH]");
  }
  need(path != NULL, "which image? usage: read_image IMAGE");
  open_image(path);
  u64 checked = 0;
  for (; check; image++) {
    for (u64 i = 0; i < image->chunk_count; i++, checked++) decoded(i);
    if (!image->has_parent) break; /* else its parent's, too: all of its frames are */
  }
  image = images;
  if (check) printf("%llu of %llu chunks checked: ok\n", (unsigned long long)checked, (unsigned long long)checked);
  u8 page[FRAME];
  if (number != NULL) {
    u64 pfn = strtoull(number, NULL, 0);
    frame(pfn, page);
    dump(page, 0, FRAME, pfn * FRAME);
  } else if (memory) {
    for (u64 i = 0; i < image->region_count; i++)
      for (u64 pfn = 0; pfn < image->regions[i].frames; pfn++) {
        frame(image->regions[i].pfn + pfn, page);
        if (fwrite(page, FRAME, 1, stdout) != 1) need(0, "writing: %s", strerror(errno));
      }
  } else if (pid != NULL && read_count > 0) {
    for (int i = 0; i < read_count; i++) print_process(strtoull(pid, NULL, 0), reads[i]);
  } else {
    sqlite3_stmt *found = query("SELECT pid, name, state, steps FROM process ORDER BY pid");
    while (row(found))
      printf("%lld %s %s %.0f\n", (long long)column(found, 0), sqlite3_column_text(found, 1), sqlite3_column_text(found, 2),
             sqlite3_column_double(found, 3));
  }
  if (fflush(stdout) != 0) need(0, "writing: %s", strerror(errno));
  return 0;
}

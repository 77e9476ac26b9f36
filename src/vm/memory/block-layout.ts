/**
 * The arena table, the frame table and the kinds of frames: the part of the kernel's layout (kernel-layout.ts) that the core reads,
 * too. Numbers only, so that its compiler understands them.
 *
 * Changing anything here changes MACHINE_VERSION (image/format.ts).
 */

/** Frames that are free, of the whole machine: a word of the kernel page. */
export const KERNEL_FREE_FRAMES = 0x18;

// Arena table: an entry an arena.
export const ARENA_FRAMES = 16384; // 64 MiB
export const ARENA_BYTES = 128;
export const ARENA_FREE_FRAMES = 0x00;
/** Heads of the free lists of orders 0..10: PFN + 1, 0 for none. */
export const ARENA_HEADS = 0x04;
export const MAX_ORDER = 10;

// Frame table: an entry a frame, the header of the block it begins.
export const FRAME_ENTRY_BYTES = 16;
/** State | order << 8 | kind << 16. */
export const FRAME_HEADER = 0x00;
export const FRAME_OWNER = 0x04;
/** Free block: next in its list, PFN + 1. */
export const FRAME_NEXT = 0x08;
/** Used block: how many hold it, leaves that map it and memory objects. More than one only for order 0 and 2 MiB mappings. */
export const FRAME_REFERENCES = 0x08;
export const FRAME_PREVIOUS = 0x0c;

export const BLOCK_TAIL = 0;
export const BLOCK_FREE = 1;
export const BLOCK_USED = 2;

export const KIND_USER = 1;
export const KIND_PAGE_TABLE = 2;
export const KIND_KERNEL_HEAP = 3;
export const KIND_KERNEL_STATIC = 4;
export const KIND_DMA = 5;
/** The snapshotter's own memory: not saved. */
export const KIND_RESERVE = 6;
/** Allocated for direct loads of a resume: not saved. */
export const KIND_LOADING = 7;
/** A page of a memory object: a file's page cache, or a shared anonymous mapping's. */
export const KIND_FILE = 8;
/** A page of a file that is what the host's file has there: saved by reference (S0.3). */
export const KIND_FILE_CLEAN = 9;
/**
 * A page of a file that a resume took from the image, since the host's file may have another there. Nobody has stored to it: it is saved,
 * and never written to the host's file.
 */
export const KIND_FILE_KEPT = 10;

/** Bit n: the contents of blocks of kind n belong to an image (S0.2). */
export const SAVED_KINDS = 0x53e;
/** Bit n: nobody who maps such a page of a file has stored to it, so that the first store must be noticed. */
export const UNWRITTEN_KINDS = 0x600;

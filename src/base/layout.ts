/**
 * The one drawing of the machine's shared memory, read by TypeScript and by the hot core (`assembly/`).
 *
 * One shared `WebAssembly.Memory` holds the control area (never saved, never write-protected: the word that records
 * a fault cannot fault, S3.1) and, from `RAM_BASE` up, the guest's RAM. Every address below is a byte offset into
 * that memory. `design/memory-ordering.md` says for each word who writes it, who reads it, and what orders them.
 *
 *     0x0000_0000  machine words             MACHINE_*           64 words
 *     0x0000_1000  vCPU words                VCPU_*              MAX_VCPUS x 256 B
 *     0x0001_0000  address-space contexts    CONTEXT_*           MAX_PROCESSES x 32 B
 *     0x0002_0000  fault counts              FAULT_COUNT_AREA    MAX_VCPUS+1 x FAULT_SLOTS x 4 kinds x 4 B
 *     0x0008_0000  dirty bitmap              DIRTY_BITMAP        1 bit a frame
 *     0x000a_0000  saveable bitmap           SAVEABLE_BITMAP     1 bit a frame
 *     0x000c_0000  planned bitmap            PLANNED_BITMAP      1 bit a frame
 *     0x000e_0000  saveable at the stop      STOP_BITMAP         1 bit a frame
 *     0x0010_0000  image bitmap (resume)     IMAGE_BITMAP        1 bit a frame
 *     0x0012_0000  pre-image wanted          KEEP_BITMAP         1 bit a frame
 *     0x0014_0000  direct bitmap (resume)    DIRECT_BITMAP       1 bit a frame
 *     0x0016_0000  faults over time          FAULT_TIMELINE      TIMELINE_BINS x 4 B a vCPU
 *     0x0027_0000  fault latency histogram   FAULT_LATENCY       LATENCY_BINS x 4 B a vCPU
 *     0x0028_0000  steps over time           STEP_TIMELINE       TIMELINE_BINS x 4 B a vCPU
 *     0x002e_0000  open to stores            OPEN_BITMAP         1 bit a frame
 *     0x0030_0000  frames of the kernel      KERNEL_BITMAP       1 bit a frame
 *     0x0032_0000  claimed by a handler      CLAIMED_BITMAP      1 bit a frame
 *     0x0034_0000  saved (tail)              SAVED_BITMAP        1 bit a frame
 *     0x0036_0000  as the last image has it  KEPT_BITMAP         1 bit a frame
 *     0x0038_0000  missing (lazy resume)     MISSING_BITMAP      1 bit a frame
 *     0x0040_0000  list of frames            LIST_FRAMES         1 word a frame
 *     0x0080_0000  the queue's frames        QUEUE_FRAMES        1 word a frame
 *     0x00c0_0000  the queue's places        QUEUE_PLACES        1 word a frame
 *     0x0100_0000  TLBs                      TLB_AREA            MAX_VCPUS x 2 MiB
 *     0x0300_0000  I/O staging and pool      POOL_BASE           32 MiB
 *     0x0500_0000  RAM                       RAM_BASE
 */

export const FRAME_BYTES = 4096;
export const FRAME_SHIFT = 12;

export const MAX_VCPUS = 16;
export const MAX_PROCESSES = 512;
/** Frames that the bitmaps and lists have room for: 4 GiB. */
export const MAX_FRAMES = 0x100000;
export const BITMAP_BYTES = 0x20000;

// Machine words: byte offsets from 0.

// Stop and tracking.

/** 1 while write tracking is armed. */
export const MACHINE_ARMED = 0x00;
/** Raised by every arm and disarm; a vCPU drops its write tags when it sees a new value (TLB shootdown). */
export const MACHINE_GENERATION = 0x04;
/** Futex: how many vCPUs have acknowledged since the coordinator last looked; only ever raised. */
export const MACHINE_ACK_BELL = 0x08;
/** 1 while the coordinator wants every vCPU stopped. */
export const MACHINE_STOP = 0x0c;
/** Futex that stopped vCPUs wait on: raised by every command to them. */
export const MACHINE_COMMAND_BELL = 0x10;
/** What stopped vCPUs are to do: COMMAND_*. */
export const MACHINE_COMMAND = 0x14;
/** Futex: raised to make idle vCPUs look at the run queue and the other words again. */
export const MACHINE_DOORBELL = 0x18;
/** 1 once the machine has been told to power off. */
export const MACHINE_POWER_OFF = 0x1c;
/** Kernel lock: 0 free; the number of the thread that holds it + 1, with LOCK_WAITED if somebody waits; LOCK_BROKEN. */
export const MACHINE_KERNEL_LOCK = 0x20;
/** Not 0: a vCPU has asked the devices for something, and the coordinator has a message that it has not looked at. */
export const MACHINE_DEVICE_BELL = 0x24;
/** Number of frames of RAM. */
export const MACHINE_FRAMES = 0x28;
/** Test switch: breaks one mechanism on purpose, so that a test can show it is caught. SABOTAGE_*. */
export const MACHINE_SABOTAGE = 0x2c;

// The list and the queue (src/cow/claims.ts).

/** Claim cursor of page writers (entries of the list, or of the queue) and of the vCPUs that copy (of the queue). */
export const MACHINE_CURSOR = 0x30;
/** Claims end at this entry. */
export const MACHINE_LIST_LENGTH = 0x34;
/** First entry of the queue. */
export const MACHINE_QUEUE_START = 0x38;
/** Next free entry of the queue: shared by loaders (resume), the fault handler, and an allocator that takes places back. */
export const MACHINE_QUEUE_CURSOR = 0x3c;
/** The queue's entries end here for page loaders and vCPUs; a claim beyond is refused. */
export const MACHINE_QUEUE_ROOM = 0x40;
/** The queue's entries end here for the coordinator, which must not wait: the last QUEUE_SPARE places are its own. */
export const MACHINE_QUEUE_END = 0x44;
/** Claims of the queue that were refused. Futex: a store without room waits on it, and is woken when its frame is saved. */
export const MACHINE_QUEUE_OVERFLOW = 0x48;
/** Pre-images that the fault handler kept. */
export const MACHINE_PREIMAGES = 0x4c;
/**
 * Which bitmap says what belongs to the image: SAVEABLE_BITMAP until the stop's copy of it is made, then STOP_BITMAP.
 */
export const MACHINE_STOP_SET = 0x50;
/** Next claimed entry of the queue, of those in the pool, that a page writer has not saved yet (a tail's): its place is used again. */
export const MACHINE_QUEUE_SAVED = 0xe0;
/** 1 while a page writer saves such entries and gives their places back: one at a time. */
export const MACHINE_QUEUE_SAVER = 0xe4;
/** How long a process sleeps for each write-protect fault that it has taken, us: while a save makes those slower that write. Else 0. */
export const MACHINE_THROTTLE = 0xe8;
/** Whether, and of which frames, the handler keeps pre-images (S1.7, S3.3): KEEP_*. */
export const MACHINE_KEEP_PREIMAGES = 0x54;

// Page writers and loaders.

/** Next free byte of the blob, in frames. */
export const MACHINE_BLOB_CURSOR = 0x58;
/** Next chunk number. */
export const MACHINE_CHUNK_CURSOR = 0x5c;
/** What page loaders claim: chunks, then same-filled extents, then references. */
export const MACHINE_LOAD_CURSOR = 0x60;
/** Not 0: page writers and loaders stop at their next claim, and there will be no image. CANCEL_*. */
export const MACHINE_CANCEL = 0x64;
/** Progress in frames, raised by page writers and loaders. */
export const MACHINE_PROGRESS = 0x68;
/** What page writers stored, in frames (progress and rate). */
export const MACHINE_STORED = 0x6c;
/** How much of an image is loaded, percent + 1; 0 when nothing is being loaded. Boot processes show it. */
export const MACHINE_LOAD_PERCENT = 0x70;
/** How far a save is, percent + 1; 0 when none is under way. For processes that show it (S3.7). */
export const MACHINE_SAVE_PERCENT = 0x74;

// 64 bit.

/** Next address-space context number. */
export const MACHINE_CONTEXT_CURSOR = 0x78;
/** Guest monotonic clock: host milliseconds minus this (float64). */
export const MACHINE_CLOCK_BASE = 0x80;
/** Fault-timeline bin 0 begins at this host time, ms (float64). */
export const MACHINE_TIMELINE_BASE = 0x88;

// 32 bit again.

/** Futex: first entry of what was lent last and is being touched; FRAME_NONE when nothing is. Whoever takes it back waits. */
export const MACHINE_TOUCHING = 0x90;
/** Number + 1 of a vCPU whose thread died: the machine cannot go on. */
export const MACHINE_LOST = 0x94;

/** Not 0: frames may be missing (MISSING_BITMAP), after a lazy resume. LAZY_*. */
export const MACHINE_LAZY = 0x98;
/** Raised to have each vCPU collect its thread's garbage at its next safepoint. */
export const MACHINE_COLLECT = 0xa8;

export const LOCK_WAITED = 0x100;
/** Who held it died: what it guards may be half changed, and nobody gets it any more. */
export const LOCK_BROKEN = 0x200;

/** Futexes, one for the inodes with certain addresses: 1 while a call is at work on such a file of the host (vm/files/file-locks.ts). */
export const MACHINE_FILE_LOCKS = 0x100;
export const FILE_LOCKS = 64;
/** Of each mount, in their order: the host's descriptor of its directory + 1; 0 for none, -1 if it was not there (vm/files/mount-roots.ts). */
export const MACHINE_MOUNT_ROOTS = 0x200;
export const MOUNT_ROOTS = 64;

export const KEEP_NONE = 0;
/** Resume, of KEEP_BITMAP: without room the store goes, and the frame is read from the image again at the stop. */
export const KEEP_FOR_RESTORE = 1;
/** Snapshot's tail, of the residual set: without room the store waits until the frame is saved. */
export const KEEP_FOR_TAIL = 2;
/** An entry of QUEUE_FRAMES whose place is not filled yet. */
export const FRAME_NONE = 0xffffffff;
/** An entry of QUEUE_PLACES whose place went back to the guest. */
export const PLACE_NONE = 0;
/** Places of the queue that only the coordinator may claim. */
export const QUEUE_SPARE = 64;
/**
 * MACHINE_CANCEL: somebody cancelled; a store found no room for its pre-image; or the guest needed the memory that was
 * reserved.
 */
export const CANCEL_ASKED = 1;
export const CANCEL_NO_ROOM = 2;
export const CANCEL_NO_MEMORY = 3;

/** MACHINE_LAZY: none is missing; all are being brought in; nobody does so any more, for the machine has ended. */
export const LAZY_NONE = 0;
export const LAZY_FILLING = 1;
export const LAZY_ENDED = 2;

export const COMMAND_RUN = 0;
/** Copy frames to their places (atomic copy). */
export const COMMAND_GATHER = 1;
/** Copy places to their frames (atomic restore). */
export const COMMAND_SCATTER = 2;
/** Forget the process at hand and ask the scheduler: memory is another machine's now. */
export const COMMAND_RESTART = 3;

// vCPU words: byte offsets from VCPU_AREA + vcpu * VCPU_BYTES.

export const VCPU_AREA = 0x1000;
export const VCPU_BYTES = 256;
/** VCPU_STATE_*. */
export const VCPU_STATE = 0x00;
/** The generation that this vCPU has acknowledged. */
export const VCPU_GENERATION = 0x04;
/** Number of the last command this vCPU has carried out. */
export const VCPU_COMMAND_DONE = 0x08;
/** Slot of the process it runs, -1 when none. */
export const VCPU_SLOT = 0x0c;
/** Longest time between the ends of two batches with work in between, ms (float64); the coordinator resets it. */
export const VCPU_LONGEST_GAP = 0x18;
/** Time spent running processes, ms (float64). */
export const VCPU_BUSY = 0x28;

/** When it went on after the last stop, host ms (float64). */
export const VCPU_LEFT = 0x38;
/** Frame + 1 that a store on this vCPU waits to see saved, during a snapshot's tail; 0 for none. */
export const VCPU_WANTED = 0x30;
/** The host's number of its thread; 0 if the host does not tell. */
export const VCPU_THREAD = 0x34;
/** Not 0: the process that it runs may have leaves of pages that a file has no more (src/vm/tasks/trims.ts). */
export const VCPU_TRIM = 0x40;

/** Stores on this vCPU that waited for room during a tail: how many, all of their time and the longest, us. */
export const VCPU_WAITS = 0xc0;
export const VCPU_WAITED = 0xc4;
export const VCPU_LONGEST_WAIT = 0xc8;
/** What MACHINE_COLLECT was when it last collected its garbage. */
export const VCPU_COLLECTED = 0x44;

export const VCPU_STATE_RUNNING = 0;
export const VCPU_STATE_STOPPED = 1;
export const VCPU_STATE_OFF = 2;

// Address-space contexts: byte offsets from CONTEXT_AREA + slot * CONTEXT_BYTES. Derived, never saved.

export const CONTEXT_AREA = 0x10000;
export const CONTEXT_BYTES = 32;
export const CONTEXT_READ = 0x00;
export const CONTEXT_WRITE = 0x08;
export const CONTEXT_GENERATION = 0x10;
export const CONTEXT_VCPU = 0x14;

// Fault counts: [vcpu][slot][kind], u32. The coordinator thread counts as vCPU MAX_VCPUS.

export const FAULT_COUNT_AREA = 0x20000;
export const FAULT_KINDS = 4;
/** A slot more than there are processes: for those that have ended and whose slots others have taken. */
export const FAULT_SLOTS = 513; // MAX_PROCESSES + 1
/** First store of a process to a frame. */
export const FAULT_USER = 0;
/** First store of the kernel. */
export const FAULT_KERNEL = 1;
/** First A/D-bit write into a page table's frame. */
export const FAULT_PAGE_TABLE = 2;
/** First store of a device. */
export const FAULT_DEVICE = 3;

export const DIRTY_BITMAP = 0x80000;
export const SAVEABLE_BITMAP = 0xa0000;
export const PLANNED_BITMAP = 0xc0000;
export const STOP_BITMAP = 0xe0000;
export const IMAGE_BITMAP = 0x100000;
export const KEEP_BITMAP = 0x120000;
export const DIRECT_BITMAP = 0x140000;
/** While pre-images are kept, a frame is open to stores only once its bit here is set. */
export const OPEN_BITMAP = 0x2e0000;

/** Planned frames that hold the kernel's data (page tables, frame table, ...): they are listed first. */
export const KERNEL_BITMAP = 0x300000;

export const TIMELINE_BINS = 4096;
export const TIMELINE_BIN_MS = 10;
export const FAULT_TIMELINE = 0x160000;
export const LATENCY_BINS = 64;
export const FAULT_LATENCY = 0x270000;
/** One fault in this many is timed. */
export const LATENCY_SAMPLE = 16;
export const STEP_TIMELINE = 0x280000;

/**
 * While pre-images are kept: one thread has the frame, and keeps its pre-image if that is wanted. While frames are missing: one
 * thread places it, or has placed it.
 */
export const CLAIMED_BITMAP = 0x320000;
/** Snapshot's tail: frames of the residual set whose contents are safe, so that no pre-image is wanted. */
export const SAVED_BITMAP = 0x340000;
/** Frames that the last image has, and that nothing has stored to since: an incremental image need not have them. */
export const KEPT_BITMAP = 0x360000;

/** Lazy resume: frames of the image that are not there yet. Whoever reads or stores one brings it in before. */
export const MISSING_BITMAP = 0x380000;

export const LIST_FRAMES = 0x400000;
export const QUEUE_FRAMES = 0x800000;
export const QUEUE_PLACES = 0xc00000;

// TLBs: direct-mapped, one a vCPU. Entry: read tag (8), write tag (8), frame's byte address (4), unused.

export const TLB_AREA = 0x1000000;
export const TLB_BYTES = 0x200000;
export const TLB_ENTRIES = 0x10000;
export const TLB_ENTRY_SHIFT = 5;
export const TLB_READ_TAG = 0;
export const TLB_WRITE_TAG = 8;
/** Where the page's bytes are, minus its address: address + this is the byte in the memory. */
export const TLB_OFFSET = 16;

// What `stage` (assembly/frames.ts) takes frames from, and what it says of each.

export const STAGE_LIVE = 0;
export const STAGE_TAIL = 1;
export const STAGE_QUEUED = 2;
export const VERDICT_STAGED = 0;
export const VERDICT_SAME_FILLED = 1;
export const VERDICT_SKIPPED = 2;

/** I/O staging buffers and the part of the staging pool that is there without asking the guest's allocator. */
export const POOL_BASE = 0x3000000;
export const POOL_BYTES = 0x2000000;

export const RAM_BASE = 0x5000000;

// PTE bits (Sv39; RISC-V privileged specification, 4.4).

export const PTE_V = 1;
export const PTE_R = 2;
export const PTE_W = 4;
export const PTE_X = 8;
export const PTE_U = 16;
export const PTE_A = 64;
export const PTE_D = 128;
/** Software: a private leaf without W whose frame others may hold; a store copies it. */
export const PTE_COW = 256;
/** Software: a leaf without V that keeps its frame while the area allows no access. */
export const PTE_PARKED = 512;
export const PTE_PPN_SHIFT = 10;

// Accesses, as the page-fault handler is told them.

export const ACCESS_READ = 0;
export const ACCESS_WRITE = 1;

// Mechanisms that a test can break. Never set outside tests.

export const SABOTAGE_NONE = 0;
/** The handler lets the store go without a mark. */
export const SABOTAGE_NO_MARK = 1;
/** The store goes before the mark. */
export const SABOTAGE_STORE_FIRST = 2;
/** A vCPU acknowledges without dropping its write tags, and takes up a process with its old ones. */
export const SABOTAGE_NO_SHOOTDOWN = 3;
/** Only the first page of a page-crossing store is tracked. */
export const SABOTAGE_NO_CROSSING = 4;
/** A/D-bit writes into page tables are not tracked. */
export const SABOTAGE_NO_AD = 5;
/** Kernel stores are not tracked. */
export const SABOTAGE_NO_KERNEL = 6;
/** The coordinator does not wait for acknowledgements before it reads. */
export const SABOTAGE_NO_ACK = 7;
/** The handler keeps no pre-image of a frame that was found equal (resume). */
export const SABOTAGE_NO_PREIMAGE = 8;
/** The bitmap's own memory is treated as protected RAM: the handler faults on its own mark. */
export const SABOTAGE_BITMAP_PROTECTED = 9;
/** Device stores are not tracked. */
export const SABOTAGE_NO_DEVICE = 10;
/** Devices go on storing after they were quiesced, also into the machine that was restored meanwhile. */
export const SABOTAGE_NO_QUIESCE = 11;

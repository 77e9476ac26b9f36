/** How large a machine may be. Code that checks or prints such a limit takes it from here (MAX_VCPUS and others: layout.ts). */
import { RAM_BASE } from "./layout.js";

/** Less RAM than this does not hold a kernel, its devices and a process. */
export const RAM_BYTES_MIN: number = 4 * 2 ** 20;
/** The most RAM that fits beside the control area in one 4 GiB memory: 4,016 MiB. */
export const RAM_BYTES_MAX: number = 4 * 2 ** 30 - RAM_BASE;
/** Threads that write and load pages. */
export const PAGE_THREADS_MAX = 4;

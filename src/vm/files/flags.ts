/** Flags of open and of lseek, with the numbers that Linux gives them. */
export const O_RDONLY = 0;
export const O_WRONLY = 1;
export const O_RDWR = 2;
export const O_CREAT = 0o100;
export const O_EXCL = 0o200;
export const O_TRUNC = 0o1000;
export const O_APPEND = 0o2000;
export const O_NONBLOCK = 0o4000;
export const O_CLOEXEC = 0o2000000;
/** The bits that say how it is open. */
export const ACCESS_MODE = 3;

export const SEEK_SET = 0;
export const SEEK_CUR = 1;
export const SEEK_END = 2;

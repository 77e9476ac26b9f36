/** Where frames are: the one place of the core where a frame number becomes a byte address and back. */
import { FRAME_SHIFT, RAM_BASE } from "../src/base/layout";

const RAM: usize = <usize>RAM_BASE;

/** Byte address of a frame of RAM. */
// @ts-ignore: decorator
@inline
export function frameAt(frame: u32): usize { return RAM + (<usize>frame << FRAME_SHIFT); }

/** Byte address of a physical address. */
// @ts-ignore: decorator
@inline
export function physical(address: u32): usize { return RAM + <usize>address; }

/** Physical address of a byte address. */
// @ts-ignore: decorator
@inline
export function addressOf(at: usize): u32 { return <u32>(at - RAM); }

/** Frame that a byte address lies in. */
// @ts-ignore: decorator
@inline
export function frameOf(at: usize): u32 { return <u32>(at - RAM) >>> FRAME_SHIFT; }

/** Byte address of a place: any frame of the shared memory, counted from its start. */
// @ts-ignore: decorator
@inline
export function placeAt(place: u32): usize { return <usize>place << FRAME_SHIFT; }

/** The report of a resume. Data with definitions; units are in the names. */
export interface ResumeReport {
  schema: 1;
  image: { path: string; id: string; time: string };
  frames: {
    /** In the image. */
    image: number;
    /** Free here, used there: loaded directly (S1.6). */
    direct: number;
    /** Used here, equal, and not written since: nothing to do (S1.7). */
    equal: number;
    /** Used here, found equal, written afterwards: the unmodified version is copied back (S1.7). */
    equal_written: number;
    /** Used here, different: patched by the atomic restore (S1.7). */
    different: number;
    /** Without data in the image. */
    same_filled: number;
    /** Patched while everything was stopped. */
    patched: number;
    /** Of these, found no room in the reserve and were read once more. */
    overflow: number;
  };
  pause: { safepoint_ms: number; consume_ms: number; patch_ms: number; rebuild_ms: number; total_ms: number };
  loaders: { threads: number; read_bytes: number; read_wait_ms: number; decode_ms: number; place_ms: number };
  phases_ms: { open: number; classify: number; load: number; stop: number; total: number };
  gb_per_s: number;
}

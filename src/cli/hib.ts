#!/usr/bin/env node
import { enter } from "./entry.js";

await enter("hib", () => import("./hib-commands.js"));

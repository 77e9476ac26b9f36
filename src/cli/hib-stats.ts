#!/usr/bin/env node
import { enter } from "./entry.js";

await enter("hib-stats", () => import("./hib-stats-command.js"));

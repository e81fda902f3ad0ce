// What pages do besides showing: they work without it.
import { keepTimes } from "./times.js";
import { follow } from "./live.js";
import { listenToKeys } from "./keys.js";
import { openLazily } from "./lazy.js";
import { offerCopies } from "./copy.js";
import { completeQueries } from "./complete.js";
import { sendOnce } from "./once.js";
import { offerPalette } from "./palette.js";

keepTimes();
listenToKeys();
openLazily(document);
offerCopies(document);
completeQueries(document);
sendOnce(document);
offerPalette();
follow(document.body.dataset.stream);

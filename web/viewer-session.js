// @ts-check

/**
 * Keeps a Nutrient Web SDK viewer supplied with session tokens from a session_path of the viewer_session module of
 * Caddy. No dependencies; works in a plain page as in React, Vue or Svelte.
 *
 *     import { loadViewer } from "./viewer-session.js";
 *
 *     const viewer = await loadViewer(NutrientViewer, { container: "#viewer" }, { sessionUrl: "/documents/42/session" });
 *     viewer.instance;   // what NutrientViewer.load() returned
 *     viewer.unload();   // when the document is closed
 *
 * @module
 */

/**
 * What is used of the SDK.
 *
 * @template {ViewerInstance} I
 * @typedef {object} Viewer
 * @property {(configuration: any) => Promise<I>} load
 * @property {(target: any) => boolean} unload
 */

/**
 * @typedef {object} ViewerInstance
 * @property {(session: string) => void} setSession
 */

/**
 * A session token and when it expires, in Unix seconds.
 *
 * @typedef {{ jwt: string, exp: number }} Session
 */

/**
 * @typedef {object} Options
 * @property {string | URL} sessionUrl Where the token comes from: a session_path, on the page's own origin.
 * @property {string | null | undefined} [session] The first token, if the app has put one into the page. Default: it is fetched.
 * @property {AbortSignal | undefined} [signal] Ends everything: what is being fetched or loaded, renewals, and the viewer.
 * @property {(error: ViewerSessionError) => void} [onError] Told when no new token can be had, while the viewer is open.
 *   Default: a warning in the console.
 */

/**
 * @template {ViewerInstance} I
 * @typedef {object} LoadedViewer
 * @property {I} instance What load() of the SDK returned.
 * @property {() => Promise<void>} renew Fetches a token now.
 * @property {() => void} unload Ends renewals and unloads the viewer. The SDK's own unload() would leave renewals running.
 */

/** How long one fetch may take, in ms. */
const FETCH_TIMEOUT = 20_000;

/** How long to try when the SDK asks for a token, in ms. The SDK itself waits for 30 s. */
const AUTH_TIMEOUT = 25_000;

/** The longest that a timer runs, in ms: timers stand still while a laptop sleeps, so the clock is looked at in between. */
const LONGEST_TIMER = 30_000;

/** The shortest time between two renewals, in ms. */
const SHORTEST_REST = 500;

/** The first and the longest time between attempts that bring nothing new, in ms. */
const FIRST_RETRY = 1_000;
const LONGEST_RETRY = 60_000;
// However long the gateway asks to wait, it does not mean longer than this.
const LONGEST_ASKED = 300_000;

/**
 * Why there is no token, or no viewer.
 *
 * Its code is one of:
 * - `login`: the app redirects, most likely because the login has ended
 * - `refused`: the app says no (401, 403, 404 and the like)
 * - `unavailable`: there is none for now (5xx, 429), or no answer in time
 * - `network`: the address cannot be reached
 * - `answer`: what came back is no token
 * - `address`: the address is not of the page's own origin
 * - `load`: the viewer did not load; `cause` is the SDK's error
 */
export class ViewerSessionError extends Error {
	/**
	 * @param {"login" | "refused" | "unavailable" | "network" | "answer" | "address" | "load"} code
	 * @param {string} message
	 * @param {{ status?: number | undefined, retryAfter?: number | undefined, cause?: unknown }} [details]
	 */
	constructor(code, message, { status, retryAfter, cause } = {}) {
		super(message, { cause });
		this.name = "ViewerSessionError";
		this.code = code;
		/** The answer's status, if there was an answer. */
		this.status = status;
		/** When another attempt makes sense, in ms from now, if the answer said so. */
		this.retryAfter = retryAfter;
		/** Whether the same may work a moment later. */
		this.temporary = code === "unavailable" || code === "network";
	}
}

/**
 * Fetches a token.
 *
 * @param {string | URL} sessionUrl A session_path, on the page's own origin.
 * @param {{ rejected?: string | undefined, signal?: AbortSignal | undefined }} [options] `rejected` is a token that did
 *   not work, so that another one is minted.
 * @returns {Promise<Session & { clock: number }>} `clock` is how far the server's clock is ahead of this one's, in ms.
 * @throws {ViewerSessionError} if there is none, or the signal's reason.
 */
export async function fetchSession(sessionUrl, { rejected, signal } = {}) {
	signal?.throwIfAborted();
	const url = new URL(sessionUrl, document.baseURI);
	if (url.origin !== location.origin) {
		throw new ViewerSessionError("address", `the session address is on ${url.origin}, but only one on the page's own origin is answered`);
	}
	/** @type {Record<string, string>} */
	const headers = { Accept: "application/json" };
	if (rejected) {
		// Without its signature a token is no secret, wherever request headers are logged.
		headers["X-Viewer-Rejected"] = rejected.slice(0, rejected.lastIndexOf("."));
	}

	const limit = new AbortController();
	const abort = () => limit.abort();
	const timer = setTimeout(abort, FETCH_TIMEOUT);
	signal?.addEventListener("abort", abort);
	let response, text;
	try {
		response = await fetch(url, { headers, signal: limit.signal, cache: "no-store", credentials: "same-origin", redirect: "manual" });
		text = await response.text();
	} catch (cause) {
		signal?.throwIfAborted();
		throw limit.signal.aborted
			? new ViewerSessionError("unavailable", `${url.pathname} did not answer within ${FETCH_TIMEOUT / 1000} seconds`, { cause })
			: new ViewerSessionError("network", `${url.pathname} cannot be reached`, { cause });
	} finally {
		clearTimeout(timer);
		signal?.removeEventListener("abort", abort);
	}

	const { status } = response;
	if (response.type === "opaqueredirect") {
		throw new ViewerSessionError("login", `${url.pathname} redirects: the login has most likely ended, so reload the page to log in`);
	}
	if (status >= 500 || status === 429 || status === 408) {
		throw new ViewerSessionError("unavailable", `${url.pathname} has no token for now (status ${status})`, { status, retryAfter: retryAfter(response) });
	}
	if (!response.ok) {
		throw new ViewerSessionError("refused", `${url.pathname} refuses a token (status ${status})`, { status });
	}
	const session = readSession(text);
	if (!session) {
		throw new ViewerSessionError("answer", `${url.pathname} answered ${status}, but with no token: it has to be a session_path of viewer_session, and the app has to answer 204`, { status });
	}
	const date = Date.parse(response.headers.get("Date") ?? "");
	// Date has whole seconds: it is half a second behind on average.
	return { ...session, clock: Number.isNaN(date) ? 0 : date + 500 - Date.now() };
}

/** What is being loaded in a container. @type {WeakMap<object, Promise<void>>} */
const loading = new WeakMap();

/** How the viewer in a container is unloaded. @type {WeakMap<object, () => void>} */
const open = new WeakMap();

/**
 * Loads a viewer and keeps it supplied with tokens: fetches one, loads the viewer, once more with another token if the
 * first is refused, answers the SDK's onAuthFailed, and renews well ahead of the end.
 *
 * @template {ViewerInstance} I
 * @param {Viewer<I>} NutrientViewer The SDK.
 * @param {object} configuration What load() of the SDK takes, without `session` and `onAuthFailed`.
 * @param {Options} options
 * @returns {Promise<LoadedViewer<I>>}
 * @throws {ViewerSessionError} if there is no token or the viewer does not load, or the signal's reason.
 */
export async function loadViewer(NutrientViewer, configuration, { sessionUrl, session, signal, onError }) {
	const { container } = /** @type {{ container?: unknown }} */ (configuration);
	const place = typeof container === "string" ? document.querySelector(container) : container instanceof Element ? container : undefined;
	if (place === null) {
		throw new ViewerSessionError("load", `the container ${container} is not in the page`);
	}
	const end = new AbortController(); // of everything that belongs to this viewer
	const ended = end.signal;
	const abort = () => end.abort(signal?.reason);
	signal?.throwIfAborted();
	signal?.addEventListener("abort", abort);

	/** @type {I | undefined} */
	let instance;
	/** @type {Session} */
	let current = { jwt: "", exp: 0 };
	let clock = 0; // the server's, ahead of this one's
	let renewAt = Infinity;
	let failures = 0; // in a row
	let unchanged = 0; // how often the same token has come again
	let refused = false;
	let told = ""; // the code of what onError was told since the last token
	/** @type {Promise<void> | undefined} */
	let fetching;
	/** @type {ReturnType<typeof setTimeout> | undefined} */
	let timer;

	/** @param {Session} next */
	function take(next) {
		const changed = next.jwt !== current.jwt;
		current = next;
		failures = 0;
		refused = false;
		told = "";
		unchanged = changed ? 0 : unchanged + 1;
		// Half of what is left. If the gateway still thinks the same token good enough, half of the rest next time. With
		// nothing left, most likely the clock is wrong.
		const left = next.exp * 1000 - (Date.now() + clock);
		renewAt = Date.now() + (left > 0 ? Math.max(left / 2, SHORTEST_REST) : Math.min(FIRST_RETRY * 2 ** unchanged, LONGEST_RETRY));
		if (instance) {
			tick(); // the timer may be set for later
			if (changed) {
				instance.setSession(next.jwt);
			}
		}
	}

	/**
	 * Fetches a token; whoever asks meanwhile waits for the same.
	 *
	 * @param {string} [rejected]
	 */
	async function fetchNext(rejected) {
		while (fetching) {
			if (!rejected) {
				return fetching;
			}
			await fetching.catch(() => {});
			if (rejected !== current.jwt) {
				return;
			}
		}
		fetching = fetchSession(sessionUrl, { rejected, signal: ended }).then((next) => {
			ended.throwIfAborted();
			if (rejected === next.jwt) {
				throw new ViewerSessionError("answer", "the session address gives the same token again, although it does not work");
			}
			clock = next.clock;
			take(next);
		});
		try {
			await fetching;
		} finally {
			fetching = undefined;
		}
	}

	/** @param {unknown} error */
	function report(error) {
		const code = error instanceof ViewerSessionError ? error.code : "other";
		if (ended.aborted || code === told) {
			return;
		}
		told = code;
		if (onError && error instanceof ViewerSessionError) {
			onError(error);
		} else {
			console.warn("viewer session:", error instanceof Error ? error.message : error);
		}
	}

	/** @param {unknown} error */
	function restAfter(error) {
		const asked = (error instanceof ViewerSessionError && error.retryAfter) || 0;
		const own = Math.min(FIRST_RETRY * 2 ** failures++, LONGEST_RETRY) * (0.75 + Math.random() / 2);
		return Math.max(asked, own);
	}

	async function renew() {
		try {
			await fetchNext();
		} catch (error) {
			const rest = restAfter(error);
			refused = !(error instanceof ViewerSessionError && error.temporary);
			renewAt = refused ? Infinity : Date.now() + rest; // a no is taken as one, until somebody comes back to the page
			// While the token is good for longer than that, nothing is lost yet.
			if (refused || Date.now() + clock + rest >= current.exp * 1000) {
				report(error);
			}
		}
	}

	function tick() {
		clearTimeout(timer);
		if (ended.aborted) {
			return;
		}
		if (Date.now() < renewAt || fetching) {
			timer = setTimeout(tick, Math.min(Math.max(renewAt - Date.now(), 100), LONGEST_TIMER));
			return;
		}
		renew().finally(tick);
	}

	// After a sleep, a lost connection, or another tab in which somebody has logged in again.
	/** @param {Event} event */
	function wake(event) {
		const online = event.type === "online";
		if (online || document.visibilityState !== "hidden") {
			if (refused || (online && failures)) {
				renewAt = 0;
			}
			tick();
		}
	}

	// The SDK calls it when the server refuses the token, and waits for setSession().
	async function onAuthFailed() {
		const rejected = current.jwt;
		const deadline = Date.now() + AUTH_TIMEOUT;
		for (;;) {
			try {
				await fetchNext(rejected);
				return;
			} catch (error) {
				const rest = restAfter(error);
				if (ended.aborted) {
					return;
				}
				if (!(error instanceof ViewerSessionError && error.temporary) || Date.now() + rest > deadline) {
					report(error);
					return; // the SDK waits for setSession(), and may not look at this promise
				}
				await pause(rest, ended);
			}
		}
	}

	function stop() {
		end.abort();
		clearTimeout(timer);
		signal?.removeEventListener("abort", abort);
	}

	function unload() {
		stop();
		if (instance) {
			const old = instance;
			instance = undefined;
			if (place && open.get(place) === unload) {
				open.delete(place);
			}
			NutrientViewer.unload(old);
		}
	}

	// A container takes one viewer at a time: one that was given up while it was being loaded is waited for, as it cannot be
	// stopped, and one that is still there gives way.
	async function load() {
		for (let before; place && (before = loading.get(place)); ) {
			await Promise.race([before, aborted]);
			ended.throwIfAborted();
		}
		const jwt = current.jwt;
		const mine = (async () => {
			if (place) {
				open.get(place)?.();
			}
			const loaded = await NutrientViewer.load({ ...configuration, session: jwt, onAuthFailed });
			if (ended.aborted) {
				NutrientViewer.unload(loaded);
				throw ended.reason;
			}
			instance = loaded;
			if (place) {
				open.set(place, unload);
			}
			if (jwt !== current.jwt) {
				loaded.setSession(current.jwt); // the SDK has asked for it while it was loading
			}
			return loaded;
		})();
		if (place) {
			loading.set(place, mine.then(() => {}, () => {}).then(() => void loading.delete(place)));
		}
		return mine;
	}
	/** @type {Promise<void>} */
	const aborted = new Promise((resolve) => ended.addEventListener("abort", () => resolve()));

	/** @type {I} */
	let viewer;
	try {
		if (session) {
			take({ jwt: session, exp: expiry(session) });
			await undefined; // React's strict mode gives up here, before anything is loaded
			ended.throwIfAborted();
		} else {
			await fetchNext();
		}
		try {
			viewer = await load();
		} catch (refusal) {
			ended.throwIfAborted();
			try {
				await fetchNext(current.jwt);
				try {
					NutrientViewer.unload(container); // in case it left something behind
				} catch {
					// No container, or none that the SDK takes: load() says so.
				}
				viewer = await load();
			} catch (cause) {
				ended.throwIfAborted();
				const why = cause instanceof ViewerSessionError ? `${messageOf(refusal)}, and ${cause.message}` : messageOf(cause);
				const code = cause instanceof ViewerSessionError && (cause.code === "login" || cause.code === "refused") ? cause.code : "load";
				throw new ViewerSessionError(code, `the viewer did not load: ${why}`, { cause: refusal });
			}
		}
		ended.throwIfAborted();
	} catch (error) {
		unload();
		throw error;
	}

	ended.addEventListener("abort", unload);
	for (const [target, type] of /** @type {[EventTarget, string][]} */ ([[document, "visibilitychange"], [window, "pageshow"], [window, "online"]])) {
		target.addEventListener(type, wake, { signal: ended });
	}
	// A page that is kept for going back goes on when it is shown again.
	window.addEventListener("pagehide", (event) => event.persisted || stop(), { signal: ended });
	tick();

	return { instance: viewer, renew: () => fetchNext(), unload };
}

/**
 * @param {string} text
 * @returns {Session | undefined}
 */
function readSession(text) {
	try {
		const { jwt, exp } = JSON.parse(text);
		return typeof jwt === "string" && typeof exp === "number" ? { jwt, exp } : undefined;
	} catch {
		return undefined;
	}
}

/**
 * When a token expires, as far as it says, in Unix seconds. It has not lived for longer than its lifetime, so a clock
 * that is behind does not make it last.
 *
 * @param {string} jwt
 */
function expiry(jwt) {
	const now = Date.now() / 1000;
	try {
		const { exp, iat } = JSON.parse(atob((jwt.split(".")[1] ?? "").replace(/-/g, "+").replace(/_/g, "/")));
		if (typeof exp === "number") {
			return typeof iat === "number" ? Math.min(exp, now + exp - iat) : exp;
		}
	} catch {
		// The SDK will say so.
	}
	return now;
}

/** @param {Response} response */
function retryAfter(response) {
	const text = response.headers.get("Retry-After");
	const seconds = Number(text);
	return text && seconds > 0 ? Math.min(seconds * 1000, LONGEST_ASKED) : undefined;
}

/**
 * @param {number} ms
 * @param {AbortSignal} signal
 * @returns {Promise<void>}
 */
function pause(ms, signal) {
	return new Promise((resolve) => {
		const timer = setTimeout(resolve, ms);
		signal.addEventListener("abort", () => {
			clearTimeout(timer);
			resolve();
		});
	});
}

/** @param {unknown} error */
function messageOf(error) {
	return error instanceof Error ? error.message : String(error);
}

/*! viewer-session 0.1.0, Apache-2.0, https://github.com/viewersession/caddy-viewer-session */
// @ts-check

/**
 * Keeps a Nutrient Web SDK viewer supplied with session tokens from a session_path of the viewer_session module of
 * Caddy. No dependencies; works in a plain page as in React, Vue, Svelte or Angular. It needs Chrome or Edge 100,
 * Firefox 97, or Safari 15.4.
 *
 *     import { loadViewer } from "/viewer-session.js";
 *
 *     const viewer = await loadViewer(NutrientViewer, { container: "#viewer" }, { sessionUrl: "/documents/42/session" });
 *     viewer.instance;   // what NutrientViewer.load() returned
 *     viewer.unload();   // when the document is closed
 *
 * @module
 */

/**
 * The part of the SDK that the module uses.
 *
 * @typedef {object} Viewer
 * @property {(configuration: any) => Promise<ViewerInstance>} load
 * @property {(target: any) => boolean} unload
 */

/**
 * @typedef {object} ViewerInstance
 * @property {(session: string) => void} setSession
 */

/**
 * What load() of the SDK takes, except what the module sets itself. Nothing is required: the token names the document.
 *
 * @template {Viewer} V
 * @typedef {Parameters<V["load"]>[0] extends infer C extends object ? C extends unknown
 *   ? Partial<Omit<C, "session" | "onAuthFailed">> & { session?: never, onAuthFailed?: never } : never : any} Configuration
 */

/**
 * A session token, when it expires (Unix seconds), and how long it is still valid (seconds).
 *
 * @typedef {{ jwt: string, exp: number, expiresIn: number }} Session
 */

/**
 * @typedef {object} SupplyOptions
 * @property {string | URL} sessionUrl A session_path on the page's own origin.
 * @property {string | null | undefined} [session] The first token, if the app has put one into the page. Default: it is
 *   fetched.
 * @property {AbortSignal | undefined} [signal] Ends everything: fetches, loading, renewals, and the viewer.
 * @property {((error: ViewerSessionError) => void) | undefined} [onError] Called when a new token is needed and there is
 *   none. Default: a warning in the console.
 * @property {((jwt: string) => void) | undefined} [onSession] Called with each token after the first, and when all is well
 *   again after onError.
 */

/**
 * A supply of tokens.
 *
 * @typedef {object} Supply
 * @property {string} jwt The current token.
 * @property {() => Promise<void>} renew Fetches a token now. For up to 5 seconds after a failed attempt, or for as long as
 *   the gateway asked for, it fails again with the same error and sends nothing.
 * @property {(patience?: number) => Promise<void>} replace Reports that the token does not work, and resolves when there is
 *   another one. `patience` is how long temporary failures are retried, in ms (default: 25,000; 0: not at all, and onError is
 *   not called).
 * @property {() => void} stop Ends renewals.
 */

/**
 * @template {Viewer} V
 * @typedef {object} LoadedViewer
 * @property {Awaited<ReturnType<V["load"]>>} instance What load() of the SDK returned.
 * @property {() => Promise<void>} renew Fetches a token now.
 * @property {() => void} unload Ends renewals and unloads the viewer. The SDK's own unload() would leave renewals running.
 */

/** How long one fetch may take, in ms. */
const FETCH_TIMEOUT = 20_000;

/** How long to try when the SDK asks for a token, in ms. The SDK itself waits for 30 s. */
const AUTH_TIMEOUT = 25_000;

/** How long to try for the first token, in ms. The user is looking at an empty page. */
const FIRST_TIMEOUT = 5_000;

/** The longest timer, in ms. Timers stop while a laptop sleeps, so the clocks are checked in between. */
const LONGEST_TIMER = 30_000;

/** The shortest time between two renewals, in ms. */
const SHORTEST_REST = 500;

/** The first and the longest time between failed attempts, in ms. */
const FIRST_RETRY = 1_000;
const LONGEST_RETRY = 60_000;

/** After a failed attempt nothing is sent for up to this long, whoever asks, in ms. */
const LONGEST_HOLD = 5_000;

/** The longest Retry-After that is obeyed, in ms. */
const LONGEST_ASKED = 300_000;

/**
 * @typedef {"login" | "refused" | "unavailable" | "network" | "answer" | "address" | "browser" | "load"} Code
 */

/**
 * Messages for users. All other codes share one, since users can do nothing about them.
 *
 * @type {Partial<Record<Code, string>>}
 */
const MESSAGES = {
	login: "Your login has most likely ended. Log in again.",
	refused: "You may not open this document.",
	unavailable: "The document is not available at the moment. Try again later.",
	network: "The server cannot be reached.",
	browser: "This browser is too old.",
};

/**
 * Why there is no token, or no viewer. The message can be shown to users; for another language, go by the code. The cause
 * is for developers.
 *
 * Its code is one of:
 * - `login`: the login has most likely ended
 * - `refused`: the app says no (403, 404 and the like)
 * - `unavailable`: there is none for now (5xx, 429), or no answer in time
 * - `network`: the server cannot be reached
 * - `answer`: the answer holds no token, or an old one
 * - `address`: sessionUrl is missing, or not on the page's own origin
 * - `browser`: the browser is too old
 * - `load`: the viewer did not load; `cause` is the SDK's error
 */
export class ViewerSessionError extends Error {
	/**
	 * @param {Code} code
	 * @param {unknown} cause
	 * @param {number} [status]
	 * @param {number} [retryAfter]
	 */
	constructor(code, cause, status, retryAfter) {
		super(MESSAGES[code] || "The document cannot be opened.", { cause: typeof cause === "string" ? new Error(cause) : cause });
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
 * @returns {Promise<Session>}
 * @throws {ViewerSessionError} if there is none, or the signal's reason.
 */
export async function fetchSession(sessionUrl, { rejected, signal } = {}) {
	const url = resolve(sessionUrl);
	const session = await ask(url, rejected, signal);
	if (session) {
		return session;
	}
	// Where a redirect leads to cannot be seen, and following it could start a login that nobody sees through. But many apps
	// redirect to add a slash, or to take it away, and the gateway knows the path either way.
	const other = new URL(url);
	other.pathname = url.pathname.replace(/\/?$/, (slash) => (slash ? "" : "/"));
	const found = await ask(other, rejected, signal).catch((error) => {
		if (error.status !== 404 && !/login|answer/.test(error.code)) {
			throw error;
		}
	});
	if (!found) {
		throw new ViewerSessionError("login", `${url.pathname} redirects: to a login, or sessionUrl must be where it leads`);
	}
	console.warn(`viewer session: sessionUrl should be ${other.pathname}`);
	return found;
}

/**
 * Keeps a token fresh: fetches one, and the next one well ahead of its end. For a viewer, there is loadViewer().
 *
 * @param {SupplyOptions} options
 * @returns {Promise<Supply>} when there is a token.
 * @throws {ViewerSessionError} if there is none, or the signal's reason.
 */
export async function supplySessions({ sessionUrl, session, signal, onSession, onError }) {
	const url = resolve(sessionUrl);
	const end = follow(signal);
	const ended = end.signal;

	let current = { jwt: "", expiresIn: 0 };
	let age = stopwatch(); // of the current token here
	let bad = ""; // a token that does not work
	let rest = 0; // the time to the next renewal,
	let idle = stopwatch(); // how much of it has passed,
	let hold = 0; // how much of it nobody can skip,
	/** @type {ViewerSessionError | undefined} */
	let failure; // because of this
	let failures = 0; // in a row
	let refusals = 0; // in a row: failures that are not temporary
	let told = ""; // the code that was reported since the last token
	/** @type {{ rejected: string, done: Promise<void> } | undefined} */
	let flight;
	/** @type {ReturnType<typeof setTimeout> | undefined} */
	let timer;

	/** @param {number} ms */
	function renewIn(ms) {
		rest = ms;
		idle = stopwatch();
	}

	/**
	 * Takes a token, and renews it when half of its time is over. If the gateway still thinks the same one good enough, half of
	 * the rest next time.
	 *
	 * @param {string} jwt
	 * @param {number} expiresIn
	 */
	function take(jwt, expiresIn) {
		const changed = current.jwt && (current.jwt !== jwt || told);
		current = { jwt, expiresIn };
		age = stopwatch();
		failures = refusals = hold = 0;
		told = "";
		renewIn(Math.max(expiresIn * 500, SHORTEST_REST));
		if (changed) {
			onSession?.(jwt);
		}
	}

	/** @param {string} rejected */
	async function fetchNext(rejected) {
		try {
			const since = age();
			const { jwt, expiresIn } = await fetchSession(url, { rejected, signal: ended });
			ended.throwIfAborted();
			if (jwt === rejected || (jwt === current.jwt && expiresIn === current.expiresIn && since > 2000)) {
				throw new ViewerSessionError("answer", `${url.pathname} gave an old answer: from a cache or service worker?`);
			}
			take(jwt, expiresIn);
		} catch (error) {
			if (error instanceof ViewerSessionError) {
				// A refusal may come from a deployment, a firewall or a captive portal, so it is retried, but not as often.
				const own = error.temporary ? Math.min(FIRST_RETRY * 2 ** failures, LONGEST_RETRY) : LONGEST_RETRY;
				failures++;
				refusals = error.temporary ? 0 : refusals + 1;
				failure = error;
				hold = error.retryAfter ?? Math.min(own / 2, LONGEST_HOLD);
				renewIn(Math.max(hold, own * (0.75 + Math.random() / 2)));
			}
			throw error;
		} finally {
			flight = undefined;
			tick(); // the timer may be set for another time
		}
	}

	/** Fetches a token. Concurrent calls share one fetch. */
	async function renew() {
		const known = () => (bad === current.jwt ? bad : ""); // not to work
		while (flight && flight.rejected !== known()) {
			await flight.done.catch(() => {}); // it was sent before that was known
			if (!known()) {
				return;
			}
		}
		if (!flight) {
			if (idle() < hold) {
				throw failure;
			}
			const rejected = known();
			flight = { rejected, done: fetchNext(rejected) };
		}
		await flight.done;
	}

	async function replace(patience = AUTH_TIMEOUT) {
		const old = (bad = current.jwt);
		const passed = stopwatch();
		let again = false;
		const wait = () => (again ? rest : hold) - idle(); // what was said before may have changed by then
		while (current.jwt === old) {
			if (wait() > 0 && passed() + wait() < patience) {
				await new Promise((resolve) => setTimeout(resolve, wait()));
				ended.throwIfAborted();
				continue; // timers may be early
			}
			try {
				await renew();
			} catch (/** @type {any} */ error) {
				again = true;
				if (!error.temporary || passed() + wait() >= patience) {
					if (patience) {
						report(error);
					}
					throw error;
				}
			}
		}
	}

	/** @param {unknown} error */
	function report(error) {
		if (ended.aborted || !current.jwt || !(error instanceof ViewerSessionError) || error.code === told) {
			return; // without a first token it is thrown
		}
		told = error.code;
		if (onError) {
			queueMicrotask(() => onError(error));
		} else {
			console.warn(error, error.cause);
		}
	}

	function tick() {
		clearTimeout(timer);
		const due = rest - idle();
		if (ended.aborted || flight) {
			return; // the flight's end is a tick
		}
		if (due > 0) {
			timer = setTimeout(tick, Math.min(due, LONGEST_TIMER));
			return;
		}
		renew().catch((error) => {
			// While the token is valid until the next attempt, nothing is lost. A second refusal is taken seriously.
			const left = current.jwt === bad ? 0 : current.expiresIn * 1000 - age();
			if (left <= rest || refusals > 1) {
				report(error);
			}
		});
	}

	/**
	 * After a sleep, a lost connection, or another tab in which somebody has logged in again.
	 *
	 * @param {Event} event
	 */
	function wake(event) {
		if (failures && (event.type === "online" || !document.hidden)) {
			rest = hold;
		}
		tick();
	}

	function stop() {
		end.abort();
		clearTimeout(timer);
	}

	try {
		if (session) {
			// If the clock is wrong its age is unknown. By default a quarter of its life is guaranteed.
			const { life, left } = lifeOf(session);
			take(session, Math.min(left, life / 4));
			await undefined; // React's strict mode gives up here, before anything is loaded
			ended.throwIfAborted();
		} else {
			await replace(FIRST_TIMEOUT);
		}
	} catch (error) {
		stop();
		throw error;
	}
	for (const type of ["visibilitychange", "pageshow", "online"]) {
		addEventListener(type, wake, { signal: ended });
	}
	// A page that is kept for going back goes on when it is shown again.
	addEventListener("pagehide", (event) => event.persisted || stop(), { signal: ended });
	tick();

	return {
		get jwt() {
			return current.jwt;
		},
		renew,
		replace,
		stop,
	};
}

/** What is being loaded in a container. @type {WeakMap<object, Promise<void>>} */
const loading = new WeakMap();

/** How the viewer in a container is unloaded. @type {WeakMap<object, () => void>} */
const open = new WeakMap();

/**
 * Loads a viewer and keeps it supplied with tokens: fetches one, loads the viewer, once more with another token if the
 * first is refused, answers the SDK's onAuthFailed, and renews well ahead of the end. With a `document` of the page's own, the
 * SDK uses the token once, so nothing is renewed after that.
 *
 * @template {Viewer} V
 * @param {V} NutrientViewer The SDK.
 * @param {Configuration<V>} configuration What load() of the SDK takes, without `session` and `onAuthFailed`.
 * @param {SupplyOptions} options
 * @returns {Promise<LoadedViewer<V>>}
 * @throws {ViewerSessionError} if there is no token or the viewer does not load, or the signal's reason.
 */
export async function loadViewer(NutrientViewer, configuration, { signal, onSession, ...options }) {
	const { container, document: own } = /** @type {{ container?: any, document?: any }} */ (configuration);
	/** @type {any} */
	let place;
	try {
		place = typeof container === "string" ? document.querySelector(container) : container ?? {};
	} catch {
		// It is not a selector.
	}
	if (!place) {
		throw new ViewerSessionError("load", `there is no ${container} in the page`);
	}
	const end = follow(signal); // of everything that belongs to this viewer
	const ended = end.signal;
	/** @type {Promise<void>} */
	const aborted = new Promise((done) => ended.addEventListener("abort", () => done()));

	/** @type {Awaited<ReturnType<V["load"]>> | undefined} */
	let instance;

	function unload() {
		end.abort();
		if (!instance) {
			return;
		}
		const old = instance;
		instance = undefined;
		open.delete(place);
		NutrientViewer.unload(old);
	}

	// A container takes one viewer at a time: one that was given up while it was being loaded is waited for, as it cannot be
	// stopped, and one that is still there gives way.
	async function load() {
		for (let before; (before = loading.get(place)); ) {
			await Promise.race([before, aborted]);
			ended.throwIfAborted();
		}
		const { jwt } = supply;
		const mine = (async () => {
			open.get(place)?.();
			const loaded = await NutrientViewer.load({ ...configuration, session: jwt, onAuthFailed });
			if (ended.aborted) {
				NutrientViewer.unload(loaded);
				throw ended.reason;
			}
			instance = /** @type {Awaited<ReturnType<V["load"]>>} */ (loaded);
			open.set(place, unload);
			if (jwt !== supply.jwt && !own) {
				loaded.setSession(supply.jwt); // the SDK has asked for it while it was loading
			}
			return instance;
		})();
		loading.set(place, mine.catch(() => {}).then(() => void loading.delete(place)));
		return mine;
	}

	// The SDK calls it when the server refuses the token. It waits for setSession(), or for the promise to be rejected.
	function onAuthFailed() {
		const answered = supply.replace();
		answered.catch(() => {}); // not every SDK looks at it
		return answered;
	}

	/** @type {Supply} */
	let supply;
	let viewer;
	try {
		supply = await supplySessions({
			...options,
			signal: ended,
			onSession(jwt) {
				instance?.setSession(jwt);
				onSession?.(jwt);
			},
		});
		try {
			viewer = await load();
		} catch (refusal) {
			ended.throwIfAborted();
			if (own && !/auth/i.test(String(refusal))) {
				throw refusal; // it is the document's fault
			}
			await supply.replace(0).catch((error) => {
				ended.throwIfAborted();
				throw error.temporary ? refusal : error;
			});
			if (loading.has(place) || open.has(place)) {
				throw refusal; // the container has another viewer now
			}
			try {
				NutrientViewer.unload(container); // in case it left something behind
			} catch {
				// No container, or none that the SDK takes: load() says so.
			}
			viewer = await load();
		}
		ended.throwIfAborted();
		if (own) {
			supply.stop(); // the SDK has used the token, and takes no other
		}
	} catch (error) {
		unload();
		if (signal?.aborted) {
			throw signal.reason;
		}
		throw error instanceof ViewerSessionError ? error : new ViewerSessionError("load", error);
	}
	ended.addEventListener("abort", unload);
	return { instance: viewer, renew: supply.renew, unload };
}

/**
 * The session address, if this page and this browser can use it.
 *
 * @param {string | URL} sessionUrl
 */
function resolve(sessionUrl) {
	if (!AbortSignal.prototype.throwIfAborted) {
		throw new ViewerSessionError("browser", "it needs Chrome 100, Firefox 97 or Safari 15.4");
	}
	let url;
	try {
		url = sessionUrl ? new URL(sessionUrl, document.baseURI) : undefined;
	} catch {
		// It is not a URL.
	}
	// A frame with srcdoc has its parent's origin, which its location does not say.
	if (!url || url.origin !== self.origin) {
		throw new ViewerSessionError("address", `sessionUrl is not of this origin: ${sessionUrl}`);
	}
	url.hash = "";
	return url;
}

/**
 * A controller that ends with a signal.
 *
 * @param {AbortSignal | undefined} signal
 */
function follow(signal) {
	const end = new AbortController();
	const abort = () => end.abort(signal?.reason);
	if (signal?.aborted) {
		abort();
	}
	signal?.addEventListener("abort", abort, { signal: end.signal });
	return end;
}

/**
 * Asks for a token at an address that no cache has seen before: those of service workers go by the address.
 *
 * @param {URL} url
 * @param {string | undefined} rejected
 * @param {AbortSignal | undefined} signal
 * @returns {Promise<Session | undefined>} nothing if the answer is a redirect
 */
async function ask(url, rejected, signal) {
	const path = url.pathname;
	const fresh = `${url}${url.search ? "&" : "?"}_=${Math.random().toString(36).slice(2)}`;
	/** @type {Record<string, string>} */
	const headers = { Accept: "application/json" };
	if (rejected) {
		// Without its signature the token is harmless where request headers are logged.
		headers["X-Viewer-Rejected"] = rejected.slice(0, rejected.lastIndexOf("."));
	}
	const limit = follow(signal);
	const timer = setTimeout(() => limit.abort(), FETCH_TIMEOUT);
	let response, body;
	try {
		response = await fetch(fresh, { headers, signal: limit.signal, cache: "no-store", redirect: "manual" });
		body = await response.text();
	} catch (cause) {
		signal?.throwIfAborted();
		throw limit.signal.aborted
			? new ViewerSessionError("unavailable", `${path} does not answer`)
			: new ViewerSessionError("network", cause);
	} finally {
		clearTimeout(timer);
		limit.abort();
	}

	const { status, ok } = response;
	if (response.type === "opaqueredirect") {
		return;
	}
	try {
		const { jwt, exp, expires_in: expiresIn } = ok && JSON.parse(body);
		if (typeof jwt === "string" && expiresIn >= 0) {
			return { jwt, exp, expiresIn: Math.min(expiresIn, lifeOf(jwt).life) };
		}
	} catch {
		// Most likely it is a page.
	}
	const code = status > 499 || status === 429 || status === 408 ? "unavailable" : status === 401 || /<input[^>]+type=.?password/i.test(body) ? "login" : ok ? "answer" : "refused";
	const hint = code === "answer" ? ", but with no token: it must be a session_path, and the app must answer 204" : "";
	throw new ViewerSessionError(code, `${path} answers ${status}${hint}`, status, retryAfter(response));
}

/**
 * The token's lifetime, and how much of it is left by this clock, in seconds.
 *
 * @param {string} jwt
 */
function lifeOf(jwt) {
	try {
		const { exp, iat } = JSON.parse(atob(jwt.split(".")[1].replace(/-/g, "+").replace(/_/g, "/")));
		const life = exp - iat || Infinity;
		return { life, left: exp - Date.now() / 1000 || 0 };
	} catch {
		return { life: Infinity, left: 0 }; // the SDK will say so
	}
}

/**
 * How long the answer asks to wait, in ms.
 *
 * @param {Response} response
 */
function retryAfter({ headers }) {
	const value = headers.get("Retry-After") ?? "";
	const date = Date.parse(headers.get("Date") ?? "") || Date.now();
	const ms = /^\d+$/.test(value) ? Number(value) * 1000 : Date.parse(value) - date;
	return ms > 0 ? Math.min(ms, LONGEST_ASKED) : undefined;
}

/**
 * Measures elapsed ms, also across sleep and when the clock is set: one of the two clocks goes on.
 */
function stopwatch() {
	const ticks = performance.now();
	const date = Date.now();
	return () => Math.max(performance.now() - ticks, Date.now() - date);
}

/*! viewer-session 0.1.0, Apache-2.0, https://github.com/viewersession/caddy-viewer-session */
export type Viewer = {
    load: (configuration: any) => Promise<ViewerInstance>;
    unload: (target: any) => boolean;
};
export type ViewerInstance = {
    setSession: (session: string) => void;
};
export type Configuration<V extends Viewer> = Parameters<V["load"]>[0] extends infer C extends object ? C extends unknown ? Partial<Omit<C, "session" | "onAuthFailed">> & {
    session?: never;
    onAuthFailed?: never;
} : never : any;
export type Session = {
    jwt: string;
    exp: number;
    expiresIn: number;
};
export type SupplyOptions = {
    /**
     * A session_path on the page's own origin.
     */
    sessionUrl: string | URL;
    /**
     * The first token, if the app has put one into the page. Default: it is
     * fetched.
     */
    session?: string | null | undefined;
    /**
     * Ends everything: fetches, loading, renewals, and the viewer.
     */
    signal?: AbortSignal | undefined;
    /**
     * Called when a new token is needed and there is
     * none. Default: a warning in the console.
     */
    onError?: ((error: ViewerSessionError) => void) | undefined;
    /**
     * Called with each token after the first, and when all is well
     * again after onError.
     */
    onSession?: ((jwt: string) => void) | undefined;
};
export type Supply = {
    /**
     * The current token.
     */
    jwt: string;
    /**
     * Fetches a token now. For up to 5 seconds after a failed attempt, or for as long as
     * the gateway asked for, it fails again with the same error and sends nothing.
     */
    renew: () => Promise<void>;
    /**
     * Reports that the token does not work, and resolves when there is
     * another one. `patience` is how long temporary failures are retried, in ms (default: 25,000; 0: not at all, and onError is
     * not called).
     */
    replace: (patience?: number) => Promise<void>;
    /**
     * Ends renewals.
     */
    stop: () => void;
};
export type LoadedViewer<V extends Viewer> = {
    /**
     * What load() of the SDK returned.
     */
    instance: Awaited<ReturnType<V["load"]>>;
    /**
     * Fetches a token now.
     */
    renew: () => Promise<void>;
    /**
     * Ends renewals and unloads the viewer. The SDK's own unload() would leave renewals running.
     */
    unload: () => void;
};
export type Code = "login" | "refused" | "unavailable" | "network" | "answer" | "address" | "browser" | "load";
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
export declare class ViewerSessionError extends Error {
    code: Code;
    /** The answer's status, if there was an answer. */
    status: number | undefined;
    /** When another attempt makes sense, in ms from now, if the answer said so. */
    retryAfter: number | undefined;
    /** Whether the same may work a moment later. */
    temporary: boolean;
    /**
     * @param {Code} code
     * @param {unknown} cause
     * @param {number} [status]
     * @param {number} [retryAfter]
     */
    constructor(code: Code, cause: unknown, status?: number, retryAfter?: number);
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
export declare function fetchSession(sessionUrl: string | URL, { rejected, signal }?: {
    rejected?: string | undefined;
    signal?: AbortSignal | undefined;
}): Promise<Session>;
/**
 * Keeps a token fresh: fetches one, and the next one well ahead of its end. For a viewer, there is loadViewer().
 *
 * @param {SupplyOptions} options
 * @returns {Promise<Supply>} when there is a token.
 * @throws {ViewerSessionError} if there is none, or the signal's reason.
 */
export declare function supplySessions({ sessionUrl, session, signal, onSession, onError }: SupplyOptions): Promise<Supply>;
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
export declare function loadViewer<V extends Viewer>(NutrientViewer: V, configuration: Configuration<V>, { signal, onSession, ...options }: SupplyOptions): Promise<LoadedViewer<V>>;

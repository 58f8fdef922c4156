export type Viewer<I extends ViewerInstance> = {
    load: (configuration: any) => Promise<I>;
    unload: (target: any) => boolean;
};
export type ViewerInstance = {
    setSession: (session: string) => void;
};
export type Session = {
    jwt: string;
    exp: number;
};
export type Options = {
    /**
     * Where the token comes from: a session_path, on the page's own origin.
     */
    sessionUrl: string | URL;
    /**
     * The first token, if the app has put one into the page. Default: it is fetched.
     */
    session?: string | null | undefined;
    /**
     * Ends everything: what is being fetched or loaded, renewals, and the viewer.
     */
    signal?: AbortSignal | undefined;
    /**
     * Told when no new token can be had, while the viewer is open.
     * Default: a warning in the console.
     */
    onError?: (error: ViewerSessionError) => void;
};
export type LoadedViewer<I extends ViewerInstance> = {
    /**
     * What load() of the SDK returned.
     */
    instance: I;
    /**
     * Fetches a token now.
     */
    renew: () => Promise<void>;
    /**
     * Ends renewals and unloads the viewer. The SDK's own unload() would leave renewals running.
     */
    unload: () => void;
};
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
export declare class ViewerSessionError extends Error {
    code: "address" | "answer" | "load" | "login" | "network" | "refused" | "unavailable";
    /** The answer's status, if there was an answer. */
    status: number | undefined;
    /** When another attempt makes sense, in ms from now, if the answer said so. */
    retryAfter: number | undefined;
    /** Whether the same may work a moment later. */
    temporary: boolean;
    /**
     * @param {"login" | "refused" | "unavailable" | "network" | "answer" | "address" | "load"} code
     * @param {string} message
     * @param {{ status?: number | undefined, retryAfter?: number | undefined, cause?: unknown }} [details]
     */
    constructor(code: "login" | "refused" | "unavailable" | "network" | "answer" | "address" | "load", message: string, { status, retryAfter, cause }?: {
        status?: number | undefined;
        retryAfter?: number | undefined;
        cause?: unknown;
    });
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
export declare function fetchSession(sessionUrl: string | URL, { rejected, signal }?: {
    rejected?: string | undefined;
    signal?: AbortSignal | undefined;
}): Promise<Session & {
    clock: number;
}>;
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
export declare function loadViewer<I extends ViewerInstance>(NutrientViewer: Viewer<I>, configuration: object, { sessionUrl, session, signal, onError }: Options): Promise<LoadedViewer<I>>;

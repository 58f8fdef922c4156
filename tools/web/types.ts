// What TypeScript makes of the package: with an SDK that has types such as the
// real one's, and with one that has none.
import { fetchSession, loadViewer, supplySessions, ViewerSessionError } from "viewer-session";
import type { LoadedViewer, Session } from "viewer-session";

interface Shared {
	container?: string | HTMLElement;
	session?: string;
	onAuthFailed?: () => void | Promise<void>;
	theme?: "light" | "dark";
}
interface Server extends Shared {
	instant: boolean; // required
}
interface Standalone extends Shared {
	document: string | ArrayBuffer; // required
}
declare class Instance {
	setSession(session: string): void;
	totalPageCount: number;
}
declare namespace NutrientViewer {
	function load(configuration: Server | Standalone): Promise<Instance>;
	function unload(target: HTMLElement | string | Instance | null): boolean;
	const version: string;
}
declare const untyped: any;

export async function use() {
	const sessionUrl = "/documents/42/session";
	const viewer = await loadViewer(NutrientViewer, { container: "#viewer", theme: "dark" }, { sessionUrl });
	const pages: number = viewer.instance.totalPageCount; // the SDK's own instance
	const same: LoadedViewer<typeof NutrientViewer> = viewer;
	await viewer.renew();
	viewer.unload();

	await loadViewer(NutrientViewer, { container: document.body, instant: false }, { sessionUrl: new URL(sessionUrl, location.href), onError: undefined, signal: undefined, session: null });
	await loadViewer(NutrientViewer, { container: "#viewer" }, { sessionUrl, onError: (error) => error.code === "login" });
	await loadViewer(untyped, { container: "#viewer" }, { sessionUrl });

	// @ts-expect-error: the module sets it
	await loadViewer(NutrientViewer, { container: "#viewer", session: "eyJ" }, { sessionUrl });
	// @ts-expect-error: the module sets it
	await loadViewer(NutrientViewer, { container: "#viewer", onAuthFailed() {} }, { sessionUrl });
	// @ts-expect-error: the SDK knows no such theme
	await loadViewer(NutrientViewer, { container: "#viewer", theme: "pink" }, { sessionUrl });
	// @ts-expect-error: sessionUrl is required
	await loadViewer(NutrientViewer, { container: "#viewer" }, {});
	// @ts-expect-error: there is no such option
	await loadViewer(NutrientViewer, { container: "#viewer" }, { sessionUrl, interval: 60 });

	const supply = await supplySessions({ sessionUrl, onSession: (jwt) => void jwt.length });
	const jwt: string = supply.jwt;
	await supply.replace();
	supply.stop();
	const session: Session = await fetchSession(sessionUrl, { rejected: jwt });
	const seconds: number = session.expiresIn;
	const error = new ViewerSessionError("refused", "no");
	// @ts-expect-error: there is no such code
	const no = error.code === "forbidden";
	return [pages, same, seconds, no, error.status ?? 0, error.retryAfter ?? 0, error.temporary];
}

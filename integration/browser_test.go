package integration

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/viewersession/caddy-viewer-session/emulator"
)

// The token expires in the middle of the session, and again, and the page goes
// on without being loaded again: the module renews ahead of it.
func TestBrowserGoesOnPastTheTokensEnd(t *testing.T) {
	p, app := newPage(t, 6*time.Second)
	p.must(`
		const load = NutrientViewer.load;
		window.failed = 0;
		NutrientViewer.load = (c) => load({ ...c, onAuthFailed: () => { failed++; return c.onAuthFailed() } });
		window.viewer = await open_();
		window.session = await fetchSession(sessionUrl);`)
	p.must(`
		const exp = session.exp;
		while (Date.now() / 1000 < exp + 2) {
			await viewer.instance.request();
			await sleep(100);
		}`)
	if got := p.must(`return failed + " " + errors + " " + (performance.timeOrigin === first) + " " + document.querySelector("#viewer").innerText.slice(0, 12)`); got != "0  true Document doc" {
		t.Errorf("failures, errors, same page, what is shown: %s", got)
	}
	if mints := p.s.api.Stats().Mints; mints < 2 {
		t.Errorf("%d mints, so no token was renewed", mints)
	}
	if refused := p.s.api.Stats().AuthsRefused; refused != 0 {
		t.Errorf("%d sign-ins with an expired token", refused)
	}
	if fetches := app.fetches(); fetches > 30 {
		t.Errorf("%d fetches in some seconds", fetches)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.navigated != 1 {
		t.Errorf("%d pages were loaded", p.navigated)
	}
}

// A token that stops working is replaced through onAuthFailed.
func TestBrowserAnswersOnAuthFailed(t *testing.T) {
	p, _ := newPage(t, 0)
	p.must(`window.viewer = await open_(); await viewer.instance.request();`)
	p.s.api.Revoke()
	p.must(`await Promise.all([viewer.instance.request(), viewer.instance.request(), viewer.instance.request()]);`)
	p.s.wantMints(2)
	// Once more, at once: the gateway replaces a key's token once in five
	// seconds, and the module waits for that.
	p.s.api.Revoke()
	p.must(`await viewer.instance.request();`)
	p.s.wantMints(3)
	if got := p.must(`return errors.length`); got != "0" {
		t.Errorf("%s errors", got)
	}
}

// The first load is refused, for which the SDK does not call onAuthFailed: the
// gateway's cached token was revoked.
func TestBrowserRetriesTheFirstLoad(t *testing.T) {
	p, _ := newPage(t, 0)
	p.s.session("/documents/doc/session")
	p.s.api.Revoke()
	p.must(`window.viewer = await open_(); await viewer.instance.request();`)
	p.s.wantMints(2)

	// A token that the app has put into the page is used, and replaced, alike.
	token, _ := p.s.session("/documents/other/session")
	p.must(`viewer.unload(); window.viewer = await open_({ session: "` + token + `", sessionUrl: "/documents/other/session" }); await viewer.instance.request(); viewer.unload();`)
	p.s.wantMints(3)
	p.s.api.Revoke()
	p.must(`window.viewer = await open_({ session: "` + token + `", sessionUrl: "/documents/other/session" }); await viewer.instance.request();`)
	p.s.wantMints(4)

	// Not more than once.
	p.must(`
		viewer.unload();
		window.loads = 0;
		window.load = NutrientViewer.load;
		NutrientViewer.load = () => { loads++; return Promise.reject(new Error("out of order")) };`)
	p.wantError(`await open_({ sessionUrl: "/documents/third/session" })`, "ViewerSessionError/load: The document cannot be opened. (out of order)")
	if got := p.must(`return loads`); got != "2" {
		t.Errorf("%s loads", got)
	}
	p.must(`NutrientViewer.load = load`)
	p.wantError(`await open_({}, { container: "#nowhere" })`, "ViewerSessionError/load: The document cannot be opened. (there is no #nowhere in the page)")
}

// While a laptop sleeps, timers stand still and the token expires.
func TestBrowserWakesUp(t *testing.T) {
	p, _ := newPage(t, 2*time.Second)
	wake := map[string]string{
		"visible": `document.dispatchEvent(new Event("visibilitychange", { bubbles: true }))`,
		"shown":   `window.dispatchEvent(new Event("pageshow"))`,
		"online":  `window.dispatchEvent(new Event("online"))`,
		"by-sdk":  "", // nothing told the module, but somebody turns a page
	}
	tabs := make(map[string]*tab)
	for name := range wake {
		tabs[name] = p.s.newPage(name)
		tabs[name].must(`
			window.real = setTimeout;
			window.setTimeout = () => 0;
			window.viewer = await open_();
			window.session = await fetchSession(sessionUrl);
			window.asleep = fetches();`)
	}
	for name, p := range tabs {
		p.must(`while (Date.now() / 1000 < session.exp + 1) await sleep(50);`)
		if p.must(`return fetches() === asleep`) != "true" {
			t.Fatal("it does not sleep, so this shows nothing")
		}
		p.must(`window.setTimeout = real; ` + wake[name])
		if name == "by-sdk" {
			before := p.s.api.Stats().AuthsRefused
			p.must(`await viewer.instance.request();`)
			if p.s.api.Stats().AuthsRefused == before {
				t.Error("the token had not expired, so this shows nothing")
			}
			continue
		}
		p.until(`fetches() > asleep`)
		p.must(`await viewer.instance.request();`)
	}
}

// A clock that is hours off neither makes the page renew all the time nor too late.
func TestBrowserWithAWrongClock(t *testing.T) {
	p, _ := newPage(t, 6*time.Second)
	var tabs []*tab
	for _, hours := range []int{-5, 5} {
		for _, fromThePage := range []bool{false, true} {
			document := fmt.Sprintf("doc%d%t", hours, fromThePage)
			p := p.s.newPage(document)
			options := ""
			if fromThePage {
				token, _ := p.s.session("/documents/" + document + "/session")
				options = `{ session: "` + token + `" }`
			}
			p.must(fmt.Sprintf(`const now = Date.now; Date.now = () => now() + %d * 3600_000;`, hours))
			p.must(`
				window.viewer = await open_(` + options + `);
				window.done = "";
				(async () => {
					for (let i = 0; i < 75; i++) {
						await viewer.instance.request();
						await sleep(100);
					}
				})().then(() => done = "well", (e) => done = e.message);`)
			tabs = append(tabs, p)
		}
	}
	for i, p := range tabs {
		p.until(`done`)
		if done := p.must(`return done`); done != "well" {
			t.Errorf("page %d: %s", i, done)
		}
		var fetches int
		if _, err := fmt.Sscan(p.must(`return fetches()`), &fetches); err != nil || fetches < 2 || fetches > 14 {
			t.Errorf("page %d: %d fetches in seven seconds, %v", i, fetches, err)
		}
	}
	if refused := p.s.api.Stats().AuthsRefused; refused != 0 {
		t.Errorf("%d sign-ins with an expired token", refused)
	}
}

func TestBrowserDuringAnOutage(t *testing.T) {
	p, _ := newPage(t, 2*time.Second)
	p.must(`window.viewer = await open_();`)
	p.s.api.SetFault(emulator.Fault{Mode: "status", Status: 500})
	p.until(`errors.length > 0`)
	if got := p.must(`return errors.join()`); got != "unavailable" {
		t.Errorf("errors %s, want it said once", got)
	}
	p.s.api.SetFault(emulator.Fault{})
	p.must(`
		for (const end = Date.now() + 20_000; ; ) {
			try { await viewer.instance.request(); break } catch (e) { if (Date.now() > end) throw e }
			await sleep(100);
		}`)
}

// A first token that has expired, and a login that has ended: the app is told
// what it can do something about.
func TestBrowserOfAnEndedLogin(t *testing.T) {
	p, app := newPage(t, 0)
	token, _ := p.s.session("/documents/doc/session")
	p.s.api.Revoke()
	app.answer(func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/login", http.StatusFound) })
	p.wantError(`await open_({ session: "`+token+`" })`, "ViewerSessionError/login: Your login has most likely ended. Log in again. (/documents/doc/session redirects")
}

// The app says no while the viewer is open, and later yes again.
func TestBrowserWhenTheAppSaysNo(t *testing.T) {
	for code, answer := range map[string]http.HandlerFunc{
		"refused": status(http.StatusForbidden),
		"login":   func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/login", http.StatusFound) },
		"answer":  func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<!doctype html>page") },
	} {
		t.Run(code, func(t *testing.T) {
			p, app := newPage(t, 2*time.Second)
			p.must(`window.viewer = await open_();`)
			app.answer(answer)
			p.until(`errors.length > 0`)
			asked := app.fetches()
			p.must(`await sleep(2000);`)
			if got := p.must(`return errors.join()`); got != code || app.fetches() != asked {
				t.Errorf("errors %s and %d further fetches, want %s and none", got, app.fetches()-asked, code)
			}
			p.wantError(`await viewer.renew()`, "ViewerSessionError/"+code)
			app.answer(yes)
			p.must(`document.dispatchEvent(new Event("visibilitychange", { bubbles: true }))`) // back from the tab with the login
			p.must(`await viewer.instance.request();`)
		})
	}
}

func TestBrowserStops(t *testing.T) {
	p, _ := newPage(t, 0)
	// An hour passes in a moment, and the module looks every 50 ms whether it is time.
	p.must(`
		const { now } = Date, wait = setTimeout, real = fetch;
		let ahead = 0;
		Date.now = () => now() + ahead;
		window.later = () => void (ahead += 3600_000);
		window.setTimeout = (f, ms) => wait(f, ms >= 30_000 ? 50 : ms);
		window.asked = 0;
		window.fetch = (url, ...more) => { if (url.includes(sessionUrl)) asked++; return real(url, ...more) };`)
	goesOn := func(after string) {
		t.Helper()
		p.must(after + `; window.before = asked; later();`)
		p.until(`asked > before`)
	}
	quiet := func(after string) {
		t.Helper()
		p.must(after + `; window.before = asked; later(); await sleep(400);`)
		if got := p.must(`return asked - before`); got != "0" {
			t.Errorf("%s fetches after %s", got, after)
		}
		// A page that goes away takes its viewer along.
		if got := p.must(`return document.querySelector("#viewer").children.length`); got != "0" && !strings.Contains(after, "pagehide") {
			t.Errorf("a viewer is left after %s", after)
		}
	}
	goesOn(`window.viewer = await open_()`)
	quiet(`viewer.unload()`)
	goesOn(`window.c = new AbortController(); await open_({ signal: c.signal })`)
	quiet(`c.abort()`)
	goesOn(`await open_()`)
	quiet(`window.dispatchEvent(new PageTransitionEvent("pagehide", { persisted: false }))`)
	goesOn(`window.viewer = await open_(); window.dispatchEvent(new PageTransitionEvent("pagehide", { persisted: true }))`) // kept for going back
	quiet(`viewer.unload()`)

	// A component that goes away while it loads, as React's strict mode does.
	for _, slow := range []string{
		`const c = new AbortController(); const loading = open_({ signal: c.signal }); c.abort(); await loading`,
		`const c = new AbortController(); const real = fetch; window.fetch = (...args) => { window.fetch = real; c.abort(); return fetch(...args) }; await open_({ signal: c.signal })`,
		`const c = new AbortController(); const load = NutrientViewer.load;
			NutrientViewer.load = async (x) => { NutrientViewer.load = load; const instance = await load(x); c.abort(); return instance };
			await open_({ signal: c.signal })`,
		`const c = new AbortController(); c.abort(); await open_({ signal: c.signal })`,
	} {
		p.wantError(slow, "AbortError")
		quiet(`await 0`)
	}
	p.must(`window.viewer = await open_(); viewer.unload();`) // the container is free
}

// As components do, which come and go while a viewer loads, or share a container.
func TestBrowserInFrameworks(t *testing.T) {
	p, _ := newPage(t, 0)
	token, _ := p.s.session("/documents/given/session")
	p.must(`
		window.slow = 0;
		const load = NutrientViewer.load;
		NutrientViewer.load = async (c) => { const instance = await load(c); await sleep(slow); return instance };
		window.component = (id, session) => {
			const end = new AbortController();
			window.opened = window.error = "";
			loadViewer(NutrientViewer, { container: "#viewer" }, { sessionUrl: "/documents/" + id + "/session", session, signal: end.signal })
				.then((viewer) => (opened = id, window.viewer = viewer), (e) => end.signal.aborted || (error = e.message));
			return () => end.abort();
		};
		window.unhandled = [];
		addEventListener("unhandledrejection", (e) => unhandled.push(String(e.reason)));`)
	for name, steps := range map[string]string{
		"another document while one loads":     `const close = component("one"); await sleep(150); close(); component("two")`,
		"mounted twice":                        `component("two")(); component("two")`,
		"mounted twice, the token in the page": `component("given", "` + token + `")(); component("two")`,
		"again in the same place":              `component("one"); while (!opened) await sleep(10); component("two")`,
	} {
		for _, slow := range []string{"0", "300"} {
			p.must(`slow = ` + slow + `; ` + steps + `; while (!error && opened !== "two") await sleep(10);`)
			if got := p.must(`return error + " " + document.querySelector("#viewer").innerText.slice(0, 12) + " " + document.querySelectorAll(".nutrient-viewer-stand-in").length`); got != " Document two 1" {
				t.Errorf("%s, %s ms: %s", name, slow, got)
			}
			p.must(`viewer.unload()`)
		}
	}
	p.s.wantMints(3) // one for each document: no good token is taken for a bad one
	if got := p.must(`return unhandled.join()`); got != "" {
		t.Error(got)
	}
}

// What other SDKs than the stand-in may do.
func TestBrowserWithOtherSDKs(t *testing.T) {
	p, app := newPage(t, 0)
	if got := p.must(`
		const given = [];
		const viewer = await loadViewer({ // asks for a token before it has loaded
			load: async (c) => { await c.onAuthFailed(); return { setSession: (jwt) => given.push(jwt) } },
			unload: () => true,
		}, {}, { sessionUrl });
		viewer.unload();
		return given.length`); got != "1" {
		t.Errorf("the instance was given %s tokens, want that which it asked for", got)
	}
	if got := p.must(`
		let loads = 0;
		const viewer = await loadViewer({ // has no container, and says so
			load: async () => { if (loads++ === 0) throw new Error("refused"); return { setSession() {} } },
			unload: (target) => { if (!target) throw new Error("invalid target"); return true },
		}, { headless: true }, { sessionUrl: "/documents/headless/session" });
		viewer.unload();
		return loads`); got != "2" {
		t.Errorf("%s loads, want 2", got)
	}
	// One that was refused late is not loaded again where another one is now.
	if got := p.must(`
		const container = document.querySelector("#viewer");
		const calls = [];
		let refuse;
		const SDK = (name) => ({
			load: async () => {
				calls.push("load " + name);
				if (name === "a") await new Promise((_, reject) => (refuse = () => reject(new Error("refused"))));
				return { setSession() {} };
			},
			unload: (what) => (calls.push("unload"), true),
		});
		const a = loadViewer(SDK("a"), { container }, { sessionUrl: "/documents/late/session" }).catch((e) => e.code + " " + e.cause.message);
		while (!refuse) await sleep(5);
		const { jwt: session } = await fetchSession("/documents/late/session");
		const b = loadViewer(SDK("b"), { container }, { sessionUrl: "/documents/late/session", session });
		await sleep(0); // it has its token, and waits for the container
		refuse();
		return [await a, await b && "loaded", ...calls].join()`); got != "load refused,loaded,load a,load b" {
		t.Errorf("what came of them, and the SDK's calls: %s", got)
	}
	app.answer(status(http.StatusForbidden))
	if got := p.must(`
		const unhandled = [];
		addEventListener("unhandledrejection", (e) => unhandled.push(String(e.reason)));
		let failed;
		await loadViewer({ load: async (c) => (failed = c.onAuthFailed, { setSession() {} }), unload: () => true },
			{}, { session: "a.b.c", sessionUrl, onError: (e) => errors.push(e.code) });
		failed(); // and does not look at the promise
		await sleep(300);
		return errors + " " + unhandled`); got != "refused " {
		t.Errorf("errors and unhandled rejections: %s", got)
	}
}

// Users read what they can do, and developers why.
func TestBrowserErrorsAreReadable(t *testing.T) {
	p, app := newPage(t, 0)
	page := func(html string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/html")
			fmt.Fprint(w, "<!doctype html><title>page</title>", html)
		}
	}
	const (
		login       = "ViewerSessionError/login: Your login has most likely ended. Log in again. (/documents/doc/session "
		refused     = "ViewerSessionError/refused: You may not open this document. (/documents/doc/session "
		unavailable = "ViewerSessionError/unavailable: The document is not available at the moment. Try again later. (/documents/doc/session "
		answer      = "ViewerSessionError/answer: The document cannot be opened. (/documents/doc/session "
		hint        = "but with no token: it must be a session_path, and the app must answer 204)"
	)
	for _, test := range []struct {
		answer http.HandlerFunc
		want   string
	}{
		{status(401), login + "answers 401)"},
		{status(403), refused + "answers 403)"},
		{status(404), refused + "answers 404)"},
		{status(408), unavailable + "answers 408)"},
		{status(429), unavailable + "answers 429)"},
		{status(500), unavailable + "answers 500)"},
		{status(503), unavailable + "answers 503)"},
		{status(200), answer + "answers 200, " + hint},
		{page("<p>the app's own page"), answer + "answers 200, " + hint},
		{page(`<form method="post"><input name="p" type="password"></form>`), login + "answers 200)"},
		{page(`<form method=post><input name=p type=password></form>`), login + "answers 200)"},
		{func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"jwt": 1, "expires_in": 60}`) }, answer},
		{func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"jwt": "a.b.c", "exp": 1}`) }, answer},
		{func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `null`) }, answer},
		{func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/login", http.StatusSeeOther) }, login + "redirects: to a login, or sessionUrl must be where it leads)"},
		{func(w http.ResponseWriter, _ *http.Request) { panic(http.ErrAbortHandler) }, "ViewerSessionError/unavailable: "},
	} {
		app.answer(test.answer)
		p.wantError(`await fetchSession(sessionUrl)`, test.want)
		if !strings.Contains(test.want, "/unavailable") { // it tries these again: TestSupplyTriesToBegin
			p.wantError(`await open_()`, test.want)
		}
	}
	before := app.fetches()
	for address, shown := range map[string]string{
		`"https://elsewhere.example/session"`: "https://elsewhere.example/session", `"http://"`: "http://",
		`undefined`: "undefined", `null`: "null", `""`: "",
	} {
		p.wantError(`await open_({ sessionUrl: `+address+` })`,
			"ViewerSessionError/address: The document cannot be opened. (sessionUrl is not of this origin: "+shown+")")
	}
	if app.fetches() != before {
		t.Error("something was fetched without an address")
	}
	app.answer(yes)
	p.wantError(`await open_({}, { container: "#nowhere" })`, "ViewerSessionError/load: The document cannot be opened. (there is no #nowhere in the page)")
	p.wantError(`await open_({}, { container: "#42" })`, "ViewerSessionError/load: The document cannot be opened. (there is no #42 in the page)")
	p.must(`await open_({ sessionUrl: new URL(sessionUrl, location) })`)
	p.must(`window.fetch = () => Promise.reject(new TypeError("Failed to fetch"))`)
	p.wantError(`await fetchSession(sessionUrl)`, "ViewerSessionError/network: The server cannot be reached. (Failed to fetch)")
}

// Many apps redirect to the same path with a slash, or without one, which is no login.
func TestBrowserOfAnAppThatWantsASlash(t *testing.T) {
	p, app := newPage(t, 0)
	app.answer(func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasSuffix(r.URL.Path, "/") {
			http.Redirect(w, r, r.URL.Path+"/", http.StatusMovedPermanently)
			return
		}
		w.WriteHeader(http.StatusNoContent)
	})
	p.must(`window.viewer = await open_(); await viewer.instance.request();`)
	if said := strings.Join(p.console(), "\n"); !strings.Contains(said, "viewer session: sessionUrl should be /documents/doc/session/") {
		t.Errorf("the developer reads %q", said)
	}
	p.must(`viewer.unload(); await open_({ sessionUrl: sessionUrl + "/" })`)

	// If the path that it leads to is out of order, that is what counts.
	app.answer(func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasSuffix(r.URL.Path, "/") {
			http.Redirect(w, r, r.URL.Path+"/", http.StatusMovedPermanently)
			return
		}
		w.WriteHeader(http.StatusServiceUnavailable)
	})
	p.wantError(`await fetchSession(sessionUrl)`, "ViewerSessionError/unavailable: ")
	app.answer(func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasSuffix(r.URL.Path, "/") {
			http.Redirect(w, r, r.URL.Path+"/", http.StatusMovedPermanently)
			return
		}
		w.WriteHeader(http.StatusForbidden)
	})
	p.wantError(`await open_()`, "ViewerSessionError/refused: You may not open this document. (/documents/doc/session/ answers 403)")
}

// A known no ends the SDK's wait, which is 30 seconds otherwise, with the
// module's message.
func TestBrowserEndsTheWait(t *testing.T) {
	for code, answer := range map[string]http.HandlerFunc{
		"refused: You may not open this document.":               status(http.StatusForbidden),
		"login: Your login has most likely ended. Log in again.": func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/login", http.StatusFound) },
		"unavailable: The document is not available at the moment. Try again later.": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", "60") // longer than the SDK waits
			w.WriteHeader(http.StatusServiceUnavailable)
		},
	} {
		t.Run(code[:5], func(t *testing.T) {
			p, app := newPage(t, 0)
			p.must(`window.viewer = await open_();`)
			p.s.api.Revoke()
			app.answer(answer)
			p.wantError(`await Promise.race([viewer.instance.request(), sleep(15_000)])`, "ViewerSessionError/"+code)
			if got, want := p.must(`return errors.join()`), code[:strings.Index(code, ":")]; got != want {
				t.Errorf("the page was told %q, want %q", got, want)
			}
		})
	}
}

// With a challenge, browsers ask for a password, and the fetch waits for it. No
// page can keep them from it; a line in the Caddyfile can.
func TestBrowserOfAChallenge(t *testing.T) {
	p, app := newPage(t, 0, "\theader /documents/*/session -WWW-Authenticate\n")
	app.answer(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
		w.WriteHeader(http.StatusUnauthorized)
	})
	p.wantError(`await Promise.race([open_(), sleep(15_000)])`, "ViewerSessionError/login: ")
}

// A frame with srcdoc has the origin of the page around it.
func TestBrowserInAFrame(t *testing.T) {
	p, _ := newPage(t, 0)
	if got := p.must(`
		const frame = document.createElement("iframe");
		const said = new Promise((resolve) => (window.onmessage = (event) => resolve(event.data)));
		frame.srcdoc = ` + "`" + `<script type="module">
			import { fetchSession } from "/viewer-session.js";
			fetchSession("/documents/framed/session").then((session) => typeof session.jwt, (error) => error.cause.message).then((said) => parent.postMessage(said, "*"));
		<` + "`" + ` + "/script>";
		document.body.append(frame);
		return await said`); got != "string" {
		t.Errorf("the frame says %q", got)
	}
}

// The module needs no more than the docs say.
func TestBrowserUnderAPolicy(t *testing.T) {
	p, _ := newPage(t, 2*time.Second)
	strict := p.s.newPageAt("/strict", "strict")
	strict.must(`
		window.viewer = await open_();
		for (const end = Date.now() + 4000; Date.now() < end; await sleep(100)) await viewer.instance.request();`)
	if said := strings.Join(strict.console(), "\n"); said != "" {
		t.Error(said)
	}
}

// The page in the docs does what they say.
func TestBrowserDocs(t *testing.T) {
	p, app := newPage(t, 2*time.Second)
	pages := blocks(docs(t)["docs/browser.md"], "html")
	if len(pages) != 1 {
		t.Fatalf("%d pages in the docs", len(pages))
	}
	app.page = `<!doctype html><title>docs</title><link rel="icon" href="data:,">` + substitute(t, pages[0], "/nutrient-viewer.js", p.s.api.url+"/emulator/nutrient-viewer.js")
	p.open("/page")
	p.wantViewer("Document 42 (read), session good for ")
	const said = `document.querySelector("[role=alert]").innerText.trim()`
	if got := p.must(`return ` + said); got != "" {
		t.Errorf("it alerts %q", got)
	}
	app.answer(func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/login", http.StatusFound) })
	p.until(said + ` === "Your login has most likely ended. Log in again. Log in" && document.querySelector("[role=alert] a").href === location.origin + "/login"`)
	app.answer(yes)
	p.must(`await new Promise((done) => setTimeout(done, 5100)); document.dispatchEvent(new Event("visibilitychange", { bubbles: true }))`)
	p.until(said + ` === ""`)

	app.answer(status(http.StatusForbidden))
	p.open("/page")
	p.until(said + ` === "You may not open this document."`)
}

// A browser from before 2022 is told so.
func TestBrowserOfOldAge(t *testing.T) {
	p, app := newPage(t, 0)
	p.must(`delete AbortSignal.prototype.throwIfAborted`)
	const want = "ViewerSessionError/browser: This browser is too old. (it needs Chrome 100, Firefox 97 or Safari 15.4)"
	p.wantError(`await open_()`, want)
	p.wantError(`await open_({ signal: new AbortController().signal })`, want)
	p.wantError(`await fetchSession(sessionUrl)`, want)
	if app.fetches() != 0 {
		t.Error("something was fetched")
	}
}

// A service worker that answers from its cache first gives no old token.
func TestBrowserBehindAServiceWorker(t *testing.T) {
	p, _ := newPage(t, 4*time.Second)
	p.must(`
		await navigator.serviceWorker.register("/worker.js");
		await navigator.serviceWorker.ready;
		while (!navigator.serviceWorker.controller) await sleep(20);
		window.plain = () => fetch(sessionUrl, { cache: "no-store" }).then((answer) => answer.json());
		window.old = await plain();
		await sleep(1100);
		if ((await plain()).expires_in !== old.expires_in) throw new Error("it does not cache, so this shows nothing");
		window.viewer = await open_();
		for (const end = Date.now() + 6000; Date.now() < end; await sleep(100)) await viewer.instance.request();`)
	if refused := p.s.api.Stats().AuthsRefused; refused != 0 {
		t.Errorf("%d sign-ins with an expired token", refused)
	}
	if got := p.must(`return errors.length`); got != "0" {
		t.Errorf("%s errors", got)
	}

	// One that goes by the path alone is noticed.
	p.must(`
		viewer.unload();
		(await navigator.serviceWorker.ready).active.postMessage("ignore the query");
		await sleep(100);
		await plain();`)
	p.s.api.Revoke()
	p.wantError(`await open_()`, "ViewerSessionError/answer: The document cannot be opened. (/documents/doc/session gave an old answer: from a cache or service worker?)")
}

// However long somebody asks the page to wait, it is not for the rest of the day.
func TestBrowserWaitsFiveMinutesAtMost(t *testing.T) {
	p, app := newPage(t, 0)
	for asked, want := range map[string]string{
		"7": "7000", "86400": "300000", "999999999999999999999999": "300000", "1e300": "undefined", "soon": "undefined", "-3": "undefined",
		"Wed, 21 Oct 2015 07:28:09 GMT": "9000", "Wed, 21 Oct 2015 09:28:00 GMT": "300000", "Wed, 21 Oct 2015 07:27:00 GMT": "undefined",
	} {
		app.answer(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", asked)
			w.Header().Set("Date", "Wed, 21 Oct 2015 07:28:00 GMT") // the page's clock is another
			w.WriteHeader(http.StatusServiceUnavailable)
		})
		if got := p.must(`return await fetchSession(sessionUrl).then(() => "", (error) => String(error.retryAfter))`); got != want {
			t.Errorf("Retry-After: %s: waits for %s ms, want %s", asked, got, want)
		}
	}
}

// Another site's page gets nothing, whatever it tries.
func TestBrowserOfAnotherSite(t *testing.T) {
	p, app := newPage(t, 0)
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		fmt.Fprint(w, `<!doctype html><link rel="icon" href="data:,">`)
	}))
	defer other.Close()
	before := app.fetches()
	p.navigate(strings.Replace(other.URL, "127.0.0.1", "localhost", 1))
	url := "http://" + p.s.gateway + "/documents/doc/session"
	for _, try := range []string{
		`return await (await fetch("` + url + `")).text()`,
		`return await (await fetch("` + url + `", { mode: "no-cors", credentials: "include" })).text()`,
		`const s = document.createElement("script"); s.src = "` + url + `"; document.head.append(s); await new Promise((resolve, reject) => { s.onload = resolve; s.onerror = () => reject(new Error("refused")) })`,
	} {
		if value, err := p.eval(try); strings.Contains(value, "jwt") || (err == nil && value != "") {
			t.Errorf("%s: %q, %v", try, value, err)
		}
	}
	if app.fetches() != before {
		t.Error("the app was asked")
	}
	p.s.wantMints(0)
}

// The real SDK is not redistributable. Where a developer has it, the token is
// seen to arrive byte for byte; VIEWER_SESSION_SDK is the path of its
// nutrient-viewer.js, in the folder with all that it loads.
func TestRealSDK(t *testing.T) {
	sdk := os.Getenv("VIEWER_SESSION_SDK")
	if sdk == "" {
		t.Log("VIEWER_SESSION_SDK is not set: the stand-in of the SDK is tested, the SDK itself is not")
		return
	}
	p, app := newPage(t, 0)
	app.answer(yes)
	p.loadSDK(sdk)
	p.must(`window.sent = [];
	window.realFetch = fetch;
	window.fetch = (url, init) => { if (String(url).endsWith("/auth")) sent.push(init.body); return realFetch(url, init) };`)
	token, _ := p.s.session("/documents/doc/session")
	// The stand-in has no document to show, so it does not load in the end.
	if _, err := p.eval(`document.querySelector("#viewer").style.height = "400px"; await open_();`); err != nil {
		t.Log(err)
	}
	var sent []string
	if err := json.Unmarshal([]byte(p.must(`return JSON.stringify(sent)`)), &sent); err != nil || len(sent) == 0 {
		t.Fatalf("%v: the SDK has not signed in", err)
	}
	var login struct{ JWT string }
	if err := json.Unmarshal([]byte(sent[0]), &login); err != nil || login.JWT != token {
		t.Errorf("%v: the SDK signed in with another token than the gateway's", err)
	}

	// Once it has signed in, and its token ends, it asks for another. A no ends
	// that at once: by itself it waits for 30 seconds.
	app.answer(status(http.StatusForbidden))
	p.s.api.Revoke()
	if got := p.must(`
		let signedIn = false, asked = 0, since;
		window.fetch = async (url, init) => {
			if (!/\/i\/d\//.test(url)) return realFetch(url, init);
			if (signedIn) return new Response("Token has expired", { status: 401 });
			signedIn = true;
			return Response.json({ token: "t", imageToken: "i", layerHandle: "l", permissions: ["read-document"], features: ["instant"], documentEngineVersion: "1.11.0", digitalSignatures: { status: "not_signed", checkedAt: new Date().toISOString() } });
		};
		NutrientViewer.unload("#viewer");
		const load = NutrientViewer.load;
		let rejected;
		const SDK = { unload: NutrientViewer.unload, load: (c) => load({ ...c, onAuthFailed: () => { asked++; since = performance.now(); return c.onAuthFailed() } }).catch((e) => { rejected ??= e.message; throw e }) };
		const error = await loadViewer(SDK, { container: "#viewer", instant: false }, { session: "` + token + `", sessionUrl }).then(() => undefined, (e) => e);
		return [asked > 0, performance.now() - since < 5000, error?.code, rejected].join()`); got != "true,true,refused,Auth refresh failed: You may not open this document." {
		t.Errorf("asked, in time, the error, the SDK's error: %s", got)
	}
}

// loadSDK puts the real SDK into the page in place of its stand-in.
func (p *tab) loadSDK(sdk string) {
	p.s.t.Helper()
	folder := http.FileServer(http.Dir(filepath.Dir(sdk)))
	files := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Access-Control-Allow-Origin", "*") // WebAssembly is fetched
		folder.ServeHTTP(w, r)
	}))
	p.s.t.Cleanup(files.Close)
	p.must(`delete window.NutrientViewer; await new Promise((resolve, reject) => {
		const script = document.createElement("script");
		script.src = "` + files.URL + "/" + filepath.Base(sdk) + `";
		script.onload = resolve;
		script.onerror = reject;
		document.head.append(script);
	})`)
}

// With a document of the page's own, the SDK shows its token once, when it loads.
func TestRealSDKWithAnOwnDocument(t *testing.T) {
	sdk := os.Getenv("VIEWER_SESSION_SDK")
	if sdk == "" {
		t.Log("VIEWER_SESSION_SDK is not set: TestExamples has the stand-in of the SDK, the SDK itself is not tested")
		return
	}
	pdf, err := os.ReadFile("../examples/own-documents/site/plan.pdf")
	if err != nil {
		t.Fatal(err)
	}
	p, _ := newPage(t, 0)
	p.loadSDK(sdk)
	token, _ := p.s.session("/editor/session")
	// It is shown as a Bearer token. The stand-in cannot license the SDK, which
	// says so, and that is not the token's fault.
	got := p.must(`
		const shown = [];
		const realFetch = fetch;
		window.fetch = (url, init) => {
			if (String(url).startsWith("` + p.s.api.url + `/")) shown.push([init.method, new URL(url).pathname, new Headers(init.headers).get("Authorization")].join(" "));
			return realFetch(url, init);
		};
		document.querySelector("#viewer").style.height = "400px";
		const own = Uint8Array.from(atob("` + base64.StdEncoding.EncodeToString(pdf) + `"), (c) => c.charCodeAt(0)).buffer;
		const error = await loadViewer(NutrientViewer, { container: "#viewer", document: own, hostedBaseUrl: "` + p.s.api.url + `/" }, { sessionUrl: "/editor/session" }).catch((e) => e);
		return [shown.length, shown[0] === "POST /i/viewer/standalone/auth Bearer ` + token + `", error.code].join()`)
	if got != "1,true,load" {
		t.Errorf("how often a token was shown, the gateway's, and the error: %s", got)
	}
}

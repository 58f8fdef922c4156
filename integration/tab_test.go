package integration

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"

	"github.com/viewersession/caddy-viewer-session/emulator"
)

// browser is one Chromium for all tests. TestMain ends it.
var browser struct {
	once sync.Once
	ctx  context.Context
	err  error
	end  func()
}

func startBrowser() {
	folder, err := os.MkdirTemp("", "viewer-session-browser")
	if err != nil {
		browser.err = err
		return
	}
	options := append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.NoSandbox, // as root, in containers
		chromedp.DisableGPU,
		chromedp.UserDataDir(folder),
		// Nothing but the tests' own pages.
		chromedp.Flag("disable-background-networking", true),
		chromedp.Flag("disable-component-update", true),
		chromedp.Flag("disable-sync", true),
		chromedp.Flag("disable-quic", true),
		chromedp.Flag("no-proxy-server", true),
	)
	if path := os.Getenv("CHROMIUM"); path != "" {
		options = append(options, chromedp.ExecPath(path))
	}
	allocator, endAllocator := chromedp.NewExecAllocator(context.Background(), options...)
	ctx, endBrowser := chromedp.NewContext(allocator)
	browser.end = func() {
		endBrowser()
		endAllocator()
		_ = os.RemoveAll(folder)
	}
	browser.ctx = ctx
	if browser.err = chromedp.Do(ctx); errors.Is(browser.err, exec.ErrNotFound) {
		browser.err = fmt.Errorf("%w: the browser tests need Chromium; scripts/setup.sh installs it, or CHROMIUM says where it is", browser.err)
	}
}

// tab is a page in Chromium, with a log of what it did.
type tab struct {
	s   *stage
	ctx context.Context

	mu        sync.Mutex
	urls      []string            // of all requests
	navigated int                 // how many documents were loaded
	requests  []network.RequestID // that have been answered
	said      []string            // in the console, and errors
}

// newTab opens a tab with a profile of its own.
func (s *stage) newTab() *tab {
	s.t.Helper()
	browser.once.Do(startBrowser)
	if browser.err != nil {
		s.t.Fatal(browser.err)
	}
	ctx, cancel := chromedp.NewContext(browser.ctx, chromedp.WithNewBrowserContext())
	s.t.Cleanup(cancel)
	ctx, stop := context.WithTimeout(ctx, time.Minute)
	s.t.Cleanup(stop)
	p := &tab{s: s, ctx: ctx}
	if err := chromedp.Listen(ctx, p.note); err != nil {
		s.t.Fatal(err)
	}
	p.run(func(ctx context.Context, target *chromedp.Target) error {
		_, err := cdp.Call(ctx, target, network.Enable, network.EnableParams{})
		if err == nil {
			_, err = cdp.Call(ctx, target, runtime.Enable, cdp.Empty{})
		}
		if err == nil {
			_, err = cdp.Call(ctx, target, log.Enable, cdp.Empty{})
		}
		return err
	})
	s.t.Cleanup(func() {
		for _, url := range p.visited() {
			s.wantNoSecretIn("an address", []byte(url))
		}
		for _, line := range p.console() {
			s.wantNoSecretIn("the console", []byte(line))
		}
	})
	return p
}

func (p *tab) note(event any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch event := event.(type) {
	case *network.EventRequestWillBeSent:
		p.urls = append(p.urls, event.Request.URL, event.DocumentURL)
		if event.Type == network.ResourceTypeDocument {
			p.navigated++
		}
	case *network.EventLoadingFinished:
		p.requests = append(p.requests, event.RequestID)
	case *runtime.EventConsoleAPICalled:
		for _, arg := range event.Args {
			p.said = append(p.said, fmt.Sprint(string(arg.Value), arg.Description))
		}
	case *runtime.EventExceptionThrown:
		p.said = append(p.said, fmt.Sprint(event.ExceptionDetails.Text, event.ExceptionDetails.Exception))
	case *log.EventEntryAdded:
		p.said = append(p.said, event.Entry.Text+" "+event.Entry.URL)
	}
}

func (p *tab) visited() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]string(nil), p.urls...)
}

func (p *tab) console() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]string(nil), p.said...)
}

// bodies returns what the page has received.
func (p *tab) bodies() (all []string) {
	p.mu.Lock()
	requests := append([]network.RequestID(nil), p.requests...)
	p.mu.Unlock()
	for _, id := range requests {
		p.run(func(ctx context.Context, target *chromedp.Target) error {
			answer, err := cdp.Call(ctx, target, network.GetResponseBody, network.GetResponseBodyParams{RequestID: id})
			if err == nil { // else it is a redirect, or an answer without a body
				all = append(all, string(answer.Body))
			}
			return nil
		})
	}
	return all
}

func (p *tab) run(action func(context.Context, *chromedp.Target) error) {
	p.s.t.Helper()
	if err := chromedp.Do(p.ctx, chromedp.Func(action)); err != nil {
		p.s.t.Fatalf("%v\nthe console: %s", err, strings.Join(p.console(), "\n"))
	}
}

func (p *tab) open(path string) {
	p.s.t.Helper()
	p.navigate("http://" + p.s.gateway + path)
}

func (p *tab) navigate(url string) {
	p.s.t.Helper()
	if err := chromedp.Do(p.ctx, chromedp.Navigate(url)); err != nil {
		p.s.t.Fatalf("%s: %v", url, err)
	}
}

// eval runs a function's body in the page, waits for it, and returns what it
// returns. An exception is the error.
func (p *tab) eval(body string) (string, error) {
	p.s.t.Helper()
	result, err := chromedp.Run(p.ctx, chromedp.Evaluate[struct{ Value, Error any }](`(async () => { try { return { value: await (async () => {`+body+`})() ?? "" } } catch (e) {
		return { error: `+"`${e.name}/${e.code}: ${e.message}${e.cause ? ` (${e.cause.message})` : ''}`"+` } } })()`, chromedp.EvalAwaitPromise))
	if err != nil {
		p.s.t.Fatalf("%s: %v\nthe console: %s", body, err, strings.Join(p.console(), "\n"))
	}
	if result.Error != nil {
		return "", errors.New(fmt.Sprint(result.Error))
	}
	return fmt.Sprint(result.Value), nil
}

func (p *tab) must(body string) string {
	p.s.t.Helper()
	value, err := p.eval(body)
	if err != nil {
		p.s.t.Fatalf("%s: %v\nthe console: %s", body, err, strings.Join(p.console(), "\n"))
	}
	return value
}

// wantError wants an exception that reads like this.
func (p *tab) wantError(body, want string) {
	p.s.t.Helper()
	if value, err := p.eval(body); err == nil || !strings.Contains(err.Error(), want) {
		p.s.t.Errorf("%s: %q, %v, want an error with %q", body, value, err, want)
	}
}

// until waits for an expression to be true in the page, also across pages.
func (p *tab) until(expression string) {
	p.s.t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	deadline := time.Now().Add(30 * time.Second)
	for {
		ok, err := chromedp.Run(p.ctx, chromedp.Evaluate[bool](`Boolean(`+expression+`)`))
		if ok {
			return
		}
		if p.ctx.Err() != nil || time.Now().After(deadline) {
			p.s.t.Fatalf("%s never came true: %v\nthe console: %s", expression, err, strings.Join(p.console(), "\n"))
		}
		<-tick.C // while a page is being loaded there is an error
	}
}

// webApp is an app with a page for the module and the stand-in of the SDK. Tests say what it answers on the session path.
type webApp struct {
	mu      sync.Mutex
	session http.HandlerFunc
	asked   int
	page    string // at /page
}

func (a *webApp) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/strict": // what the docs say that the module needs, and the stand-in of the SDK
		w.Header().Set("Content-Security-Policy", "default-src 'none'; script-src 'self' http://127.0.0.1:*; connect-src 'self' http://127.0.0.1:*; img-src data:")
		fallthrough
	case "/":
		w.Header().Set("Content-Type", "text/html")
		_, _ = w.Write([]byte(`<!doctype html><title>test</title><link rel="icon" href="data:,"><div id="viewer"></div>`))
	case "/worker.js":
		w.Header().Set("Content-Type", "text/javascript")
		_, _ = w.Write([]byte(cacheFirst))
	case "/page":
		w.Header().Set("Content-Type", "text/html")
		_, _ = w.Write([]byte(a.page))
	case "/login":
		_, _ = w.Write([]byte("log in"))
	default:
		a.mu.Lock()
		a.asked++
		session := a.session
		a.mu.Unlock()
		session(w, r)
	}
}

// cacheFirst is a service worker as many sites have one: what it has fetched
// once is never fetched again. It keeps no headers, so that no-store does not count.
const cacheFirst = `
	const kept = new Map();
	let whole = true;
	onmessage = () => (whole = false);
	oninstall = () => skipWaiting();
	onactivate = (event) => event.waitUntil(clients.claim());
	onfetch = (event) => event.respondWith((async () => {
		const { href, pathname } = new URL(event.request.url);
		if (event.request.method !== "GET" || !pathname.endsWith("/session")) return fetch(event.request);
		const key = whole ? href : pathname;
		if (!kept.has(key)) kept.set(key, await (await fetch(event.request)).text());
		return new Response(kept.get(key));
	})());
`

func (a *webApp) answer(session http.HandlerFunc) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.session = session
}

func (a *webApp) fetches() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.asked
}

func yes(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }

// status answers with a status.
func status(code int) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
}

// newPage starts a gateway with a page in front of an API that grants tokens of
// this lifetime, with further directives, and opens the page.
func newPage(t *testing.T, lifetime time.Duration, directives ...string) (*tab, *webApp) {
	t.Helper()
	s := newStage(t)
	if lifetime > 0 {
		s.api = newStandIn(t, emulator.Options{APIKey: testKey, MaxTTL: lifetime})
	}
	app := &webApp{session: yes}
	srv := httptest.NewServer(app)
	t.Cleanup(srv.Close)
	site := strings.ReplaceAll(sessionSite, "APP", srv.Listener.Addr().String())
	s.load(strings.TrimSuffix(site, "}\n") + strings.Join(directives, "") + "}\n")
	return s.newPage("doc"), app
}

// newPage opens a page of the app, for a document.
func (s *stage) newPage(document string) *tab {
	s.t.Helper()
	return s.newPageAt("/", document)
}

func (s *stage) newPageAt(path, document string) *tab {
	s.t.Helper()
	p := s.newTab()
	p.open(path)
	p.must(`
		await new Promise((resolve, reject) => {
			const script = document.createElement("script");
			script.src = "` + s.api.url + `/emulator/nutrient-viewer.js";
			script.onload = resolve;
			script.onerror = reject;
			document.head.append(script);
		});
		Object.assign(window, await import("/viewer-session.js"));
		window.errors = [];
		window.sessionUrl = "/documents/` + document + `/session";
		window.open_ = (options = {}, configuration = { container: "#viewer" }) => loadViewer(NutrientViewer, configuration,
			{ sessionUrl, onError: (e) => errors.push(e.code), ...options });
		window.sleep = ((wait) => (ms) => new Promise((resolve) => wait(resolve, ms)))(setTimeout);
		window.first = performance.timeOrigin;
		window.fetches = () => performance.getEntriesByType("resource").filter((e) => new URL(e.name).pathname.endsWith("/session")).length;`)
	return p
}

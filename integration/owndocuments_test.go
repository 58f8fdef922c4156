package integration

import (
	"bytes"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/viewersession/caddy-viewer-session/emulator"
)

func ownDocuments(t *testing.T, s *stage, text string) {
	api := s.local(text)
	mints := func(want int64) {
		t.Helper()
		var stats emulator.Stats
		getJSON(t, "http://"+api+"/emulator/stats", &stats)
		if stats.Mints != want || len(stats.Documents) != 0 {
			t.Fatalf("%d mints, want %d, for the documents %v, want none", stats.Mints, want, stats.Documents)
		}
	}
	tell(t, "POST", "http://"+api+"/emulator/reset", "", 204)
	s.get("/editor", 401, "X-Viewer-Session", "forged")
	s.get("/editor/session", 401)

	logIn := func(user string) *tab {
		p := s.newTab()
		p.navigate("http://" + user + ":change%20me@" + s.gateway + "/") // the browser remembers it
		p.until(`location.pathname === "/editor"`)
		p.open("/editor")
		p.wantViewer("The page's own document, 651 bytes for " + user + ", session good for ")
		return p
	}
	const token = `const token = (html) => html.match(/"(ey[^"]+)"/)?.[1] ?? html;`
	current := func(p *tab) string {
		return p.must(token + `return token(await (await fetch("/editor")).text())`)
	}

	ann := logIn("ann")
	ann.screenshot("own-documents")
	mints(1)
	first := current(ann)
	if c := claims(t, first); c["user_id"] != "ann" || c["allowed_documents"] != nil {
		t.Errorf("a token with %v", c)
	}

	// A file that the user chooses.
	choose := `
		const files = new DataTransfer();
		files.items.add(new File(["%PDF-1.4 "], "own.pdf", { type: "application/pdf" }));
		const input = document.querySelector("input");
		input.files = files.files;
		input.dispatchEvent(new Event("change"));`
	ann.must(choose)
	ann.wantViewer("The page's own document, 9 bytes for ann, session good for ")
	if got := ann.must(`return document.querySelectorAll(".nutrient-viewer-stand-in").length`); got != "1" {
		t.Errorf("%s viewers", got)
	}

	// A reload is the same token, and what a client sends under its name goes.
	ann.open("/editor")
	ann.wantViewer("The page's own document, 651 bytes for ann, session good for ")
	if got := ann.must(token + `return token(await (await fetch("/editor", { headers: { "X-Viewer-Session": "eyForged", "X_Viewer_Session": "eyForged" } })).text())`); got != first {
		t.Errorf("the page has another token: %q", got)
	}
	mints(1)

	// Bob has a token of his own, which says so.
	bob := logIn("bob")
	if c := claims(t, current(bob)); c["user_id"] != "bob" {
		t.Errorf("bob's token has %v", c)
	}
	mints(2)

	// The API is down: nobody who has a token notices.
	tell(t, "PUT", "http://"+api+"/emulator/fault", `{"mode":"status","status":500}`, 204)
	ann.open("/editor")
	ann.wantViewer("The page's own document, 651 bytes for ann, session good for ")
	ann.must(choose)
	ann.wantViewer("The page's own document, 9 bytes for ann, session good for ")
	tell(t, "POST", "http://"+s.admin+"/viewer_session/purge", `{"document_id": "editor"}`, 200)
	if current(ann) != first {
		t.Error("the purge of a document took ann's token")
	}

	// Without one, the page says so, and works again when the API does.
	tell(t, "POST", "http://"+s.admin+"/viewer_session/purge", `{"all": true}`, 200)
	if got := ann.must(`return (await fetch("/editor")).status`); got != "502" {
		t.Errorf("status %s", got)
	}
	ann.must(choose)
	ann.until(`document.querySelector("[role=alert]").textContent === "The document is not available at the moment. Try again later."`)
	tell(t, "DELETE", "http://"+api+"/emulator/fault", "", 204)
	ann.must(`while (!(await fetch("/editor/session")).ok) await new Promise((done) => setTimeout(done, 100))`) // the back-off's end
	ann.must(choose)
	ann.wantViewer("The page's own document, 9 bytes for ann, session good for ")
	if current(ann) == first {
		t.Error("the token that was purged is back")
	}
}

// The example's document is one: what its cross-reference table says is where the table says.
func TestPDFOfTheExample(t *testing.T) {
	pdf, err := os.ReadFile("../examples/own-documents/site/plan.pdf")
	if err != nil {
		t.Fatal(err)
	}
	start := regexp.MustCompile(`startxref\n(\d+)\n%%EOF\n$`).FindSubmatch(pdf)
	if start == nil || !bytes.HasPrefix(pdf, []byte("%PDF-1.4\n")) {
		t.Fatal("no PDF")
	}
	at, _ := strconv.Atoi(string(start[1]))
	table := regexp.MustCompile(`^xref\n0 (\d+)\n0000000000 65535 f \n((?:\d{10} 00000 n \n)+)trailer\n`).FindSubmatch(pdf[at:])
	if table == nil {
		t.Fatal("no table where startxref says")
	}
	entries := strings.Split(strings.TrimSpace(string(table[2])), "\n")
	if strconv.Itoa(len(entries)+1) != string(table[1]) {
		t.Errorf("%d objects, and the table says %s", len(entries), table[1])
	}
	for i, entry := range entries {
		at, _ := strconv.Atoi(entry[:10])
		if want := strconv.Itoa(i+1) + " 0 obj\n"; !bytes.HasPrefix(pdf[at:], []byte(want)) {
			t.Errorf("at %d there is no %q", at, want)
		}
	}
}

// The SDK uses the token once, so nothing is renewed after that: an open page asks nothing.
func TestOwnDocumentIsNotRenewed(t *testing.T) {
	p := inVirtualTime(t)
	if got := p.must(`
		const used = [];
		let refuse = 1;
		const SDK = {
			async load({ session, onAuthFailed, document }) {
				used.push([session, document]);
				if (refuse-- > 0) {
					revoke();
					throw new Error("DWS Viewer API authorization failed: expired");
				}
				return { setSession: (jwt) => used.push("setSession") };
			},
			unload: () => true,
		};
		const document = new ArrayBuffer(8);
		const viewer = await loadViewer(SDK, { document }, { sessionUrl: "/s", onError: (error) => told.push(error.code), onSession: () => told.push("onSession") });
		told.length = 0;
		const asked = calls.length;
		await pass(1440 * minutes);
		for (const type of ["online", "visibilitychange", "pageshow"]) dispatchEvent(new Event(type));
		await pass(60 * minutes);
		viewer.unload();
		return [used.length, used[0][0] !== used[1][0], used.every(([, own]) => own === document), asked, calls.length, told, await viewer.renew().catch((error) => error.name)].join()`); got != "2,true,true,2,2,,AbortError" {
		t.Errorf("loads, with two tokens, with the document, calls until it had loaded and in a day, errors, and a renewal: %s", got)
	}

	// What the SDK cannot show is no reason for another token.
	if got := p.must(`
		calls.length = 0;
		let loads = 0;
		const SDK = { load: async () => { loads++; throw new Error("invalid PDF") }, unload: () => true };
		const error = await loadViewer(SDK, { document: "/none.pdf" }, { sessionUrl: "/s" }).catch((error) => error);
		return [loads, calls.length, error.code, error.cause.message].join()`); got != "1,1,load,invalid PDF" {
		t.Errorf("loads, calls, the error: %s", got)
	}
	// Nor is the SDK told of a token that was renewed while it was loading.
	if got := p.must(`
		calls.length = 0;
		const used = [];
		const SDK = {
			async load({ session }) {
				await new Promise((done) => setTimeout(done, 50 * minutes));
				return { setSession: () => used.push("setSession") };
			},
			unload: () => true,
		};
		const loading = loadViewer(SDK, { document: "/own.pdf" }, { sessionUrl: "/s" });
		await pass(51 * minutes);
		await loading;
		const asked = calls.length;
		await pass(1440 * minutes);
		return [asked > 1, calls.length === asked, used.length].join()`); got != "true,true,0" {
		t.Errorf("renewed while loading, not after that, setSession: %s", got)
	}
}

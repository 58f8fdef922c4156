package viewersession

import (
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/viewersession/caddy-viewer-session/internal/cookietest"
	"github.com/viewersession/caddy-viewer-session/internal/dwstest"
	"github.com/viewersession/caddy-viewer-session/internal/strip"
)

// What is put on the request is taken off again, with nothing beside it changed.
func TestInjectedCookieIsTakenOffAlone(t *testing.T) {
	for _, others := range [][]string{nil, {"a=1"}, {strings.Join(cookietest.Honest, "; ")}, {"teams=red vs blue", `open="x`}} {
		r := &http.Request{Header: http.Header{}}
		if others != nil {
			r.Header["Cookie"] = slices.Clone(others)
		}
		info, names := new(requestInfo), strip.New("", "vs")
		info.inject(r, &names, "eyJ.a.b")
		if got := r.Header["Cookie"]; len(got) != 1 || !strings.HasPrefix(got[0], "vs=eyJ.a.b") {
			t.Errorf("injected %q", got)
		}
		info.remove(r)
		var want []string
		if others != nil {
			want = []string{strings.Join(others, "; ")}
		}
		if got := r.Header["Cookie"]; !slices.Equal(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

// Names that could not be told apart after folding and unescaping are refused
// when the config loads.
func TestCookieNames(t *testing.T) {
	for name, want := range map[string]bool{
		"viewer_session": true, "__Host-viewer": true, "viewer.session": true, "a": true, "A1-._": true,
		"x%41": false, "100%": false, "a+b": false, "a b": false, "a=b": false, "a;b": false, "a,b": false, "a[b]": false, `"a"`: false, "a\x00": false, "ä": false, "a\t": false,
	} {
		names, err := newNames("", name)
		if (err == nil) != want {
			t.Errorf("%q: %v", name, err)
		}
		if err == nil {
			r := &http.Request{Header: http.Header{"Cookie": {"a1=1; " + name + "=evil"}}}
			if names.Strip(r, nil); !slices.Equal(r.Header["Cookie"], []string{"a1=1"}) {
				t.Errorf("%q: %q is left", name, r.Header["Cookie"])
			}
		}
	}
}

func TestTokenIsTakenOffWhateverHappens(t *testing.T) {
	h := newTestHandler(t, new(dwstest.API), `viewer_session {
		document_path /documents/:id
		request_header X-Viewer-Session
		request_cookie viewer
	}`)
	boom := errors.New("boom")
	for name, do := range map[string]func(http.ResponseWriter, *http.Request) error{
		"success": func(http.ResponseWriter, *http.Request) error { return nil },
		"error":   func(http.ResponseWriter, *http.Request) error { return boom },
		"panic":   func(http.ResponseWriter, *http.Request) error { panic(http.ErrAbortHandler) },
		"edited in place": func(_ http.ResponseWriter, r *http.Request) error {
			r.Header["X-Viewer-Session"][0] = "edited"
			r.Header.Add("X-Viewer-Session", "added")
			r.Header.Add("Cookie", "late=1")
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			next := &app{do: do}
			r, w := newRequest("GET", "/documents/doc", "Cookie", "honest=1")
			func() {
				defer func() { _ = recover() }()
				if err := h.ServeHTTP(w, r, next); !errors.Is(err, boom) && err != nil {
					t.Error(err)
				}
			}()
			if !strings.HasPrefix(next.header.Get("X-Viewer-Session"), "ey") || !strings.HasPrefix(next.header.Get("Cookie"), "viewer=ey") || !strings.HasSuffix(next.header.Get("Cookie"), "; honest=1") {
				t.Errorf("the app saw %s", headerText(next.header))
			}
			if text := headerText(r.Header); strings.Contains(text, "ey") || strings.Contains(text, "X-Viewer-Session") || !strings.Contains(text, "honest=1") {
				t.Errorf("afterwards the request has %s", text)
			}
		})
	}
}

// What the first instance in a chain injected is the second's to leave alone;
// what a client sent under the second's own names is not.
func TestTwoInstancesInOneChain(t *testing.T) {
	first := newTestHandler(t, new(dwstest.API), `viewer_session {
		document_path /documents/:id
		request_header X-Viewer-Session
		request_cookie first
	}`)
	for name, tc := range map[string]struct {
		second string
		want   map[string]int // tokens by header and cookie
	}{
		"second does not match": {
			"document_path /elsewhere/:id\nrequest_header X-Viewer-Session",
			map[string]int{"X-Viewer-Session": 1, "first": 1},
		},
		"second does not match, and has both names": {
			"document_path /elsewhere/:id\nrequest_header X-Viewer-Session\nrequest_cookie first",
			map[string]int{"X-Viewer-Session": 1, "first": 1},
		},
		"second matches as well": {
			"document_path /documents/:id\nrequest_header X-Viewer-Session\nrequest_cookie first",
			map[string]int{"X-Viewer-Session": 1, "first": 1},
		},
		"names of its own": {
			"document_path /documents/:id\nrequest_header X-Second\nrequest_cookie second",
			map[string]int{"X-Viewer-Session": 1, "first": 1, "X-Second": 1, "second": 1},
		},
		"names of its own, and does not match": {
			"document_path /elsewhere/:id\nrequest_header X-Second\nrequest_cookie second",
			map[string]int{"X-Viewer-Session": 1, "first": 1},
		},
		"one name in common": {
			"document_path /elsewhere/:id\nrequest_header X-Viewer-Session\nrequest_cookie second",
			map[string]int{"X-Viewer-Session": 1, "first": 1},
		},
	} {
		t.Run(name, func(t *testing.T) {
			second := newTestHandler(t, new(dwstest.API), "viewer_session {\n"+tc.second+"\n}")
			next := new(app)
			r, w := newRequest("GET", "/documents/doc",
				"X-Viewer-Session", "forged", "X_Viewer_Session", "forged", "X-Second", "forged", "X_Second", "forged",
				"Cookie", "first=forged; second=forged; honest=1")
			err := first.ServeHTTP(w, r, caddyhttp.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
				return second.ServeHTTP(w, r, next)
			}))
			if err != nil {
				t.Fatal(err)
			}
			got := make(map[string]int)
			for _, name := range []string{"X-Viewer-Session", "X-Second"} {
				for _, value := range next.header[name] {
					if value != "forged" {
						got[name]++
					}
				}
			}
			for _, c := range (&http.Request{Header: next.header}).Cookies() {
				if c.Name != "honest" && strings.HasPrefix(c.Value, "ey") {
					got[c.Name]++
				}
			}
			if len(got) != len(tc.want) {
				t.Errorf("tokens %v, want %v", got, tc.want)
			}
			for name, n := range tc.want {
				if got[name] != n {
					t.Errorf("tokens %v, want %v", got, tc.want)
				}
			}
			text := headerText(next.header)
			for mine, forged := range map[string][]string{
				"":                      {"X-Viewer-Session: forged", "X_Viewer_Session: forged", "first=forged"}, // the first instance's
				"X-Second":              {"X-Second: forged", "X_Second: forged"},
				"request_cookie second": {"second=forged"},
			} {
				for _, value := range forged {
					if strings.Contains(tc.second, mine) && strings.Contains(text, value) {
						t.Errorf("a client's value reached the app: %s", text)
					}
				}
			}
			if text := headerText(r.Header); strings.Contains(text, "eyJ") {
				t.Errorf("afterwards the request has %s", text)
			}
		})
	}
}

// Each instance in a chain has a token of its own, which ends with it and with
// no other: what stands in between may call the rest of the chain again.
func TestEachInstanceTakesOffItsOwnToken(t *testing.T) {
	outer := newTestHandler(t, new(dwstest.API), oneRoute)
	inner := newTestHandler(t, new(dwstest.API), "viewer_session {\ndocument_path /documents/:id\nrequest_header X-Second\npermissions read write\nshared\n}")
	stripping := newTestHandler(t, new(dwstest.API), "viewer_session {\ndocument_path /elsewhere/:id\n}")
	r, w := newRequest("GET", "/documents/doc", "X-Viewer-Session", "forged", "X-Second", "forged")
	seen := func(h *Handler) (first, second string) {
		t.Helper()
		next := new(app)
		if err := h.ServeHTTP(w, r, next); err != nil {
			t.Fatal(err)
		}
		return next.header.Get("X-Viewer-Session"), next.header.Get("X-Second")
	}
	err := outer.ServeHTTP(w, r, caddyhttp.HandlerFunc(func(http.ResponseWriter, *http.Request) error {
		first, second := seen(inner)
		if !strings.HasPrefix(first, "ey") || !strings.HasPrefix(second, "ey") || first == second {
			t.Errorf("the app sees %q and %q, want two tokens", first, second)
		}
		if a, b := seen(inner); a != first || b != second {
			t.Errorf("called again, the app sees %q and %q", a, b)
		}
		if a, b := seen(stripping); a != first || b != "" {
			t.Errorf("behind the inner instance, %q and %q are left", a, b)
		}
		return nil
	}))
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range []*Handler{stripping, outer} {
		r.Header.Set("X-Viewer-Session", "forged")
		if first, _ := seen(h); first == "forged" {
			t.Error("a value that came later is taken for the token")
		}
	}
}

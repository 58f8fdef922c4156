package viewersession

import (
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/viewersession/caddy-viewer-session/internal/cookietest"
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
		names, err := (&Handler{RequestCookie: name}).newNames()
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

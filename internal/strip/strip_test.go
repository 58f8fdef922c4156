package strip

import (
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"

	"golang.org/x/net/http/httpguts"
)

func TestStripHeaderAliases(t *testing.T) {
	c := New("X-Viewer-Session", "")
	for _, name := range []string{
		"X-Viewer-Session", "x-viewer-session", "X-VIEWER-SESSION", "X_Viewer_Session", "x_viewer_session", "X.Viewer.Session",
		"X-Viewer_Session", "X_Viewer.Session", "x.VIEWER-session", "X__Viewer_Session", "_X-Viewer-Session", "X-Viewer-Session~", "X!ViewerSession", "XViewer|Session", "X'V*i+e`w^e$r%S&e#ssion",
	} {
		r := &http.Request{Header: http.Header{name: {"evil", "evil"}, "X-Other": {"a"}}}
		c.Strip(r, nil)
		if want := (http.Header{"X-Other": {"a"}}); !reflect.DeepEqual(r.Header, want) {
			t.Errorf("%s: got %v", name, r.Header)
		}
	}
	for _, name := range []string{
		"X-Viewer-Sessions", "X-Viewer-Sessio", "Viewer-Session", "XX-Viewer-Session", "X-ViewerSession", "X--Viewer-Session",
		"Cookie", "Viewer_session", "XViewerSession", "X-View-er-Session", "X-Viewer-Session-", "Z_Viewer_Session",
	} {
		r := &http.Request{Header: http.Header{name: {"mine"}}}
		c.Strip(r, nil)
		if want := (http.Header{name: {"mine"}}); !reflect.DeepEqual(r.Header, want) {
			t.Errorf("%s: got %v", name, r.Header)
		}
	}
	// A configured name with a dot or an underscore has the same aliases.
	for _, configured := range []string{"X_token", "X.token", "X-Token"} {
		for _, name := range []string{"X_Token", "x.token", "X-TOKEN", configured} {
			r := &http.Request{Header: http.Header{name: {"evil"}}}
			New(configured, "").Strip(r, nil)
			if len(r.Header) != 0 {
				t.Errorf("%s configured: %s stays", configured, name)
			}
		}
	}
}

func TestStripAllAliasesAtOnce(t *testing.T) {
	r := &http.Request{Header: http.Header{
		"X-Viewer-Session": {"a"}, "X_viewer_session": {"b"}, "X.Viewer.Session": {"c"}, "Accept": {"d"},
	}}
	New("X-Viewer-Session", "").Strip(r, nil)
	if want := (http.Header{"Accept": {"d"}}); !reflect.DeepEqual(r.Header, want) {
		t.Errorf("got %v", r.Header)
	}
}

func TestStripLeavesTheOtherKindAlone(t *testing.T) {
	header := func() http.Header {
		return http.Header{"X-Viewer-Session": {"a"}, "Cookie": {"viewer_session=b"}, "Connection": {"cookie, x-viewer-session"}}
	}
	for _, test := range []struct {
		names Names
		want  http.Header
	}{
		{New("X-Viewer-Session", ""), http.Header{"Cookie": {"viewer_session=b"}, "Connection": {"cookie"}}},
		{New("", "viewer_session"), http.Header{"X-Viewer-Session": {"a"}, "Connection": {"x-viewer-session"}}},
		{New("X-Viewer-Session", "viewer_session"), http.Header{}},
		{Names{}, header()},
	} {
		r := &http.Request{Header: header()}
		test.names.Strip(r, nil)
		if !reflect.DeepEqual(r.Header, test.want) {
			t.Errorf("%+v: got %v, want %v", test.names, r.Header, test.want)
		}
	}
}

func TestStripConnection(t *testing.T) {
	for _, test := range []struct{ name, lines, want string }{ // lines are separated by "|"
		{"alone", "X-Viewer-Session", ""},
		{"any case", "x-VIEWER-session", ""},
		{"aliases", "X_Viewer_Session, x.viewer.session", ""},
		{"cookie", "Cookie", ""},
		{"cookie in any case", "cOOkie", ""},
		{"keeps upgrade", "Upgrade, X-Viewer-Session", "Upgrade"},
		{"keeps upgrade behind", "X-Viewer-Session,Upgrade", "Upgrade"},
		{"keeps keep-alive", "keep-alive, Cookie, Upgrade", "keep-alive, Upgrade"},
		{"keeps others", "X-Other , X-Viewer-Session , close", "X-Other, close"},
		{"blanks", " \tX-Viewer-Session\t ,\tUpgrade", "Upgrade"},
		{"several lines", "Upgrade|X-Viewer-Session", "Upgrade"},
		{"several lines of ours", "X-Viewer-Session|Cookie, x-viewer-session", ""},
		{"several lines, ours among others", "keep-alive, X-Viewer-Session|Upgrade, Cookie", "keep-alive, Upgrade"},
		{"twice", "X-Viewer-Session, Upgrade, X-Viewer-Session", "Upgrade"},
		{"untouched", "Upgrade", "Upgrade"},
		{"untouched as it is", "keep-alive ,Upgrade,,|close", "keep-alive ,Upgrade,,|close"},
		{"longer name", "X-Viewer-Session-Id, Cookies", "X-Viewer-Session-Id, Cookies"},
		{"not a list", "X-Viewer-Session;q=1", "X-Viewer-Session;q=1"},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := &http.Request{Header: http.Header{"Connection": strings.Split(test.lines, "|")}}
			New("X-Viewer-Session", "viewer_session").Strip(r, nil)
			if got := strings.Join(r.Header["Connection"], "|"); got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
			if _, ok := r.Header["Connection"]; ok && test.want == "" {
				t.Error("an empty Connection header is left")
			}
		})
	}
}

// Of what a client wants to speak instead of HTTP, websocket stays.
func TestStripUpgrade(t *testing.T) {
	for _, test := range []struct{ connection, upgrade, wantConnection, wantUpgrade string }{ // lines are separated by "|"
		{"Upgrade", "websocket", "Upgrade", "websocket"},
		{"keep-alive, Upgrade", "WebSocket", "keep-alive, Upgrade", "WebSocket"},
		{"Upgrade, HTTP2-Settings", "h2c", "", ""},
		{"upgrade, http2-settings, keep-alive", "H2C", "keep-alive", ""},
		{"HTTP2-Settings|Upgrade|close", "h2c", "close", ""},
		{"Upgrade, HTTP2-Settings", "h2c, websocket", "Upgrade", "websocket"},
		{"Upgrade, HTTP2-Settings", "websocket,h2c", "Upgrade", "websocket"},
		{"Upgrade", "h2c|websocket", "Upgrade", "websocket"},
		{"Upgrade", "websocket|h2c", "Upgrade", "websocket"},
		{"Upgrade", " \twebsocket ", "Upgrade", "websocket"},
		{"Upgrade", "TLS/1.0, HTTP/2.0, connect-udp", "", ""},
		{"Upgrade", "websocket/13", "", ""},
		{"Upgrade", "", "", ""},
		{"close", "h2c", "close", ""},
	} {
		for _, c := range []Names{New("X-Viewer-Session", ""), New("", "viewer_session")} {
			r := &http.Request{Header: http.Header{
				"Connection": strings.Split(test.connection, "|"), "Upgrade": strings.Split(test.upgrade, "|"), "Http2-Settings": {"AAMAAABkAAQAAP__"},
			}}
			c.Strip(r, nil)
			if got := strings.Join(r.Header["Connection"], "|"); got != test.wantConnection {
				t.Errorf("%+v: Connection %q", test, got)
			}
			if got, ok := r.Header["Upgrade"]; strings.Join(got, "|") != test.wantUpgrade || ok != (test.wantUpgrade != "") {
				t.Errorf("%+v: Upgrade %q", test, got)
			}
			if _, ok := r.Header["Http2-Settings"]; ok {
				t.Errorf("%+v: HTTP2-Settings stays", test)
			}
		}
	}
}

func TestStripConnectionLeavesTheCallersSliceAlone(t *testing.T) {
	lines := []string{"Upgrade, X-Viewer-Session", "close"}
	r := &http.Request{Header: http.Header{"Connection": lines}}
	New("X-Viewer-Session", "").Strip(r, nil)
	if lines[0] != "Upgrade, X-Viewer-Session" || lines[1] != "close" {
		t.Errorf("changed in place: %q", lines)
	}
}

// trailerServer answers with the trailers that a handler finds behind strip,
// in a copy of the request, as Caddy hands one on.
func trailerServer(t *testing.T, n Names) net.Addr {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, original *http.Request) {
		r := original.WithContext(original.Context())
		n.Strip(r, nil)
		declared := len(r.Trailer)
		body, err := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%d %s %v %v", declared, body, err, maps.Clone(r.Trailer))
	}))
	t.Cleanup(server.Close)
	return server.Listener.Addr()
}

func TestStripTrailers(t *testing.T) {
	c := New("X-Viewer-Session", "viewer_session")
	addr := trailerServer(t, c)
	for _, test := range []struct{ name, declared, sent, want string }{
		{"declared", "X-Viewer-Session", "X-Viewer-Session: evil\r\n", "0 body <nil> map[]"},
		{"declared in any case", "x-viewer-SESSION", "x-viewer-session: evil\r\n", "0 body <nil> map[]"},
		{"alias", "X_Viewer_Session", "X_Viewer_Session: evil\r\n", "0 body <nil> map[]"},
		{"cookie", "Cookie", "Cookie: viewer_session=evil\r\n", "0 body <nil> map[]"},
		{"beside another", "X-Check, X-Viewer-Session", "X-Check: sum\r\nX-Viewer-Session: evil\r\n", "1 body <nil> map[X-Check:[sum]]"},
		{"late", "X-Check", "X-Check: sum\r\nX-Viewer-Session: evil\r\n", "1 body <nil> map[X-Check:[sum]]"},
		{"late alias", "X-Check", "X-Check: sum\r\nX_VIEWER.session: evil\r\nCookie: viewer_session=evil\r\n", "1 body <nil> map[X-Check:[sum]]"},
		{"undeclared", "", "X-Viewer-Session: evil\r\n", "0 body <nil> map[]"},
		{"another", "X-Check", "X-Check: sum\r\n", "1 body <nil> map[X-Check:[sum]]"},
		{"declared, not sent", "X-Viewer-Session, X-Check", "", "1 body <nil> map[X-Check:[]]"},
	} {
		t.Run(test.name, func(t *testing.T) {
			conn, err := net.Dial(addr.Network(), addr.String())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			declaration := ""
			if test.declared != "" {
				declaration = "Trailer: " + test.declared + "\r\n"
			}
			fmt.Fprintf(conn, "POST / HTTP/1.1\r\nHost: a\r\n%sTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n4\r\nbody\r\n0\r\n%s\r\n", declaration, test.sent)
			answer, err := io.ReadAll(conn)
			if err != nil {
				t.Fatal(err)
			}
			_, got, _ := strings.Cut(string(answer), "\r\n\r\n")
			if got != test.want {
				t.Errorf("got  %s\nwant %s", got, test.want)
			}
		})
	}
}

func TestStripLeavesABodyWithoutTrailersAlone(t *testing.T) {
	body := io.NopCloser(strings.NewReader("body"))
	r := &http.Request{Header: http.Header{}, Body: body}
	New("X-Viewer-Session", "").Strip(r, nil)
	if r.Body != body {
		t.Error("the body is wrapped")
	}
}

func FuzzStripHeader(f *testing.F) {
	for _, seed := range []string{"X-Viewer-Session", "x_viewer.session", "X-Viewer-Sessions", "Cookie", "", "X\u212aViewer-Session", "X-Viewer-Session\x00"} {
		f.Add(seed, "X-Viewer-Session", "Upgrade, "+seed)
	}
	f.Fuzz(func(t *testing.T, name, configured, connection string) {
		if !httpguts.ValidHeaderFieldName(configured) || !httpguts.ValidHeaderFieldName(name) {
			return
		}
		cgi := func(name string) string { // the variable that a CGI-style app sees
			text := []byte(name)
			for i, c := range text {
				switch {
				case c >= 'a' && c <= 'z':
					text[i] = c - 'a' + 'A'
				case !isAlphanumeric(c):
					text[i] = '_'
				}
			}
			return string(text)
		}
		r := &http.Request{
			Header:  http.Header{name: {"evil"}, "Connection": {connection, "Upgrade"}},
			Trailer: http.Header{name: {"evil"}},
		}
		bare := func(name string) string { // what no app folds any further
			return strings.Map(func(c rune) rune {
				if c == '_' {
					return -1
				}
				return c
			}, cgi(name))
		}
		New(configured, "").Strip(r, nil)
		for where, fields := range map[string]http.Header{"header": r.Header, "trailer": r.Trailer} {
			_, left := fields[name]
			if left && cgi(name) == cgi(configured) && (where == "trailer" || name != "Connection") {
				t.Fatalf("%s %q is left, with %q configured", where, name, configured)
			}
			if !left && bare(name) != bare(configured) && (where == "trailer" || name != "Upgrade" && name != "Connection" && name != "Http2-Settings") {
				t.Fatalf("%s %q is gone, with %q configured", where, name, configured)
			}
		}
		if cgi(configured) == "CONNECTION" {
			return // refused by the config
		}
		upgrades := false
		for _, line := range r.Header["Connection"] {
			for option := range strings.SplitSeq(line, ",") {
				option = strings.TrimSpace(option)
				if cgi(option) == cgi(configured) {
					t.Fatalf("Connection still holds %q", option)
				}
				upgrades = upgrades || option == "Upgrade"
			}
		}
		if !upgrades && cgi(configured) != "UPGRADE" {
			t.Fatalf("Upgrade is gone from %q", r.Header["Connection"])
		}
	})
}

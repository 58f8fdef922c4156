package strip

import (
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"

	"golang.org/x/net/http/httpguts"

	"github.com/viewersession/caddy-viewer-session/internal/cookietest"
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

// stripped returns the Cookie lines that are left.
func stripped(name string, lines ...string) []string {
	header := http.Header{"Cookie": lines}
	stripCookie(header, name)
	return header["Cookie"]
}

func TestStripCookie(t *testing.T) {
	for _, test := range []struct{ name, lines, want string }{ // lines are separated by "|"
		// Plain.
		{"alone", "viewer_session=evil", ""},
		{"empty value", "viewer_session=", ""},
		{"first", "viewer_session=evil; a=1", "a=1"},
		{"middle", "a=1; viewer_session=evil; b=2", "a=1; b=2"},
		{"last", "a=1; viewer_session=evil", "a=1"},
		{"no blanks", "a=1;viewer_session=evil;b=2", "a=1; b=2"},
		{"more blanks", "a=1;  \tviewer_session=evil ; b=2", "a=1; b=2"},
		{"blanks around the name", "a=1; viewer_session =evil", "a=1"},
		{"tab around the name", "a=1; viewer_session\t= evil", "a=1"},
		{"blanks in front", "  viewer_session=evil; a=1", "a=1"},
		{"value with equals signs", "viewer_session=a=b==; c=1", "c=1"},
		{"quoted value", `viewer_session="evil"; a=1`, "a=1"},
		{"quoted value with a semicolon", `viewer_session="ev;il"; a=1`, "a=1"},
		{"inside somebody's quotes", `a="x; viewer_session=evil"; b=2`, "b=2"},

		// Duplicates and lines.
		{"twice", "viewer_session=evil; viewer_session=evil", ""},
		{"twice around another", "viewer_session=evil; a=1; viewer_session=evil", "a=1"},
		{"second line", "a=1|viewer_session=evil", "a=1"},
		{"first line", "viewer_session=evil|a=1", "a=1"},
		{"both lines", "viewer_session=evil|viewer_session=evil", ""},
		{"both lines among others", "a=1; viewer_session=evil|viewer_session=evil; b=2", "a=1|b=2"},
		{"three lines", "a=1|viewer_session=evil|b=2", "a=1|b=2"},

		// Malformed pairs, which Request.Cookies does not show.
		{"no equals sign", "viewer_session", ""},
		{"no equals sign among others", "a=1; viewer_session; b=2", "a=1; b=2"},
		{"comma behind the name", "viewer_session,=evil; a=1", "viewer_session,=evil; a=1"},
		{"quoted name", `"viewer_session"=evil; a=1`, "a=1"},
		{"quote in front", `"viewer_session=evil; a=1`, "a=1"},
		{"quoted pair", `"viewer_session=evil"; a=1`, "a=1"},
		{"control character in the value", "viewer_session=e\x01vil; a=1", "a=1"},
		{"empty pairs", ";; viewer_session=evil ;;a=1", "a=1"},
		{"blank in the value", "viewer_session=e vil; a=1", "a=1"},
		{"escaped twice", "%2576iewer_session=evil; a=1", "a=1"},
		{"escaped three times", "viewer%25255Fsession=evil; a=1", "a=1"},
		{"backslash in a quoted name", `"viewer\_session"=evil; a=1`, "a=1"},
		{"backslashes in a quoted name", `a=1; "v\\\iewer_sessio\n"=evil`, "a=1"},
		{"backslash in the value", `viewer_session=e\vil; a=1`, "a=1"},
		{"not ASCII in the value", "viewer_session=\xff; a=1", "a=1"},
		{"NUL behind the name", "viewer_session\x00x=evil; a=1", "a=1"},
		{"vertical tab in front", "\vviewer_session=evil; a=1", "a=1"},
		{"form feed in front", "a=1;\fviewer_session=evil", "a=1"},

		// Commas and white space end a pair for some parsers.
		{"comma in front", "a=1,viewer_session=evil", ""},
		{"comma and blank in front", "a=1, viewer_session=evil; b=2", "b=2"},
		{"comma before anything", ",viewer_session=evil; b=2", "b=2"},
		{"blank in front of ours", "a=1 viewer_session=evil; b=2", "b=2"},
		{"tab in front of ours", "a=1\tviewer_session=evil; b=2", "b=2"},
		{"quoted behind a comma", `a=1,"viewer_session"=evil; b=2`, "b=2"},
		{"malformed behind a comma", "a=1,viewer_session; b=2", "a=1,viewer_session; b=2"},
		{"PHP's spelling behind a comma", "a=1, viewer.session=evil; b=2", "b=2"},

		// PHP reads these as viewer_session.
		{"dot", "viewer.session=evil; a=1", "a=1"},
		{"blank", "viewer session=evil; a=1", "a=1"},
		{"bracket", "viewer[session=evil; a=1", "a=1"},
		{"member", "viewer_session[x]=evil; a=1", "a=1"},
		{"members", "viewer_session[]=a; viewer_session[0][b]=c; a=1", "a=1"},
		{"member of dot", "viewer.session[x]=evil; a=1", "a=1"},
		{"dot on another line", "a=1|viewer.session=evil", "a=1"},

		// Percent escapes, which older PHP decodes in names.
		{"escaped letter", "%76iewer_session=evil; a=1", "a=1"},
		{"escaped underscore", "viewer%5fsession=evil; a=1", "a=1"},
		{"escaped dot", "viewer%2Esession=evil; a=1", "a=1"},
		{"escaped blank", "viewer%20session=evil; a=1", "a=1"},
		{"plus", "viewer+session=evil; a=1", "a=1"},
		{"escaped bracket", "viewer_session%5Bx%5D=evil; a=1", "a=1"},
		{"all escaped", "%76%69%65%77%65%72%5F%73%65%73%73%69%6F%6E=evil; a=1", "a=1"},
		{"escaped NUL behind the name", "viewer_session%00=evil; a=1", "a=1"},
		{"escaped equals sign", "viewer_session%3Devil; a=1", "a=1"},

		// Case.
		{"capitals", "VIEWER_SESSION=evil; a=1", "a=1"},
		{"mixed", "Viewer_Session=evil; a=1", "a=1"},
		{"escaped capital", "%56iewer_session=evil; a=1", "a=1"},

		// Not ours.
		{"behind a letter", "aviewer_session=mine; b=x y", "aviewer_session=mine; b=x y"},
		{"list", "a=1,viewer_session,b=2; c=x y", "a=1,viewer_session,b=2; c=x y"},
		{"words", "a=red viewer_session blue; c=1", "a=red viewer_session blue; c=1"},
		{"Latin-1", "a=caf\xe9viewer_session; c=1", "a=caf\xe9viewer_session; c=1"},
		{"longer", "viewer_sessions=mine", "viewer_sessions=mine"},
		{"longer in front", "my_viewer_session=mine", "my_viewer_session=mine"},
		{"shorter", "viewer_sessio=mine", "viewer_sessio=mine"},
		{"hyphen", "viewer-session=mine", "viewer-session=mine"},
		{"host prefix", "__Host-viewer_session=mine", "__Host-viewer_session=mine"},
		{"value", "a=viewer_session", "a=viewer_session"},
		{"value with our pair", "a=viewer_session=mine", "a=viewer_session=mine"},
		{"quoted value with our name", `a="viewer_session=mine"; b=1`, "b=1"},
		{"URL in a value", "back=/viewer_session?viewer_session=x", "back=/viewer_session?viewer_session=x"},
		{"nameless", "=mine; a=1", "=mine; a=1"},
		{"nothing", "", ""},
		{"dollar", "$Version=1; a=1; $Path=/", "$Version=1; a=1; $Path=/"},
	} {
		t.Run(test.name, func(t *testing.T) {
			lines := strings.Split(test.lines, "|")
			before := strings.Join(lines, "|")
			left := stripped("viewer_session", lines...)
			if got := strings.Join(left, "|"); got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
			if strings.Join(lines, "|") != before {
				t.Errorf("the caller's lines are changed in place: %q", lines)
			}
			if found := whoReads("viewer_session", left); found != "" {
				t.Errorf("%s still reads it in %q", found, left)
			}
		})
	}
}

// Lines that do not hold our cookie stay as they are, byte for byte. Of the
// others, what RFC 6265 knows stays.
func TestStripCookieKeepsOtherCookiesAsTheyAre(t *testing.T) {
	wellFormed := []string{"a=1", "b=", `e="quoted"`, "f=x=y==", "g=%76iewer_session", "viewer_session_id=7", "Viewer-Session=8", "a=1", "__Secure-o=p", "t.u=v", "r=/doc?viewer_session=1", `s={"a":1}`[:2] + "(1)"}
	malformed := []string{"c", "=d", "h=a b", "i=1,2,3", "k=\xff\xfe", "m=\u00fc", `n="a\"b"`, "q[r]=s", `j={"a":[1]}`}
	others := append(append([]string(nil), wellFormed...), malformed...)
	for i := range others {
		for _, evil := range []string{"viewer_session=evil", "viewer.session=evil", "viewer_session", `"viewer_session"=e`, "viewer%5Fsession[]=x"} {
			pairs := append(append(append([]string(nil), others[:i]...), " "+evil), others[i:]...)
			got := strings.Join(stripped("viewer_session", strings.Join(pairs, "; ")), "|")
			if want := strings.Join(wellFormed, "; "); got != want {
				t.Fatalf("%q at %d:\ngot  %q\nwant %q", evil, i, got, want)
			}
			// On a line of its own it takes nothing with it.
			calm := strings.ReplaceAll(strings.Join(others, "; "), "viewer_session=1", "")
			if got := stripped("viewer_session", calm, evil); len(got) != 1 || got[0] != calm {
				t.Fatalf("%q on a line of its own: got %q", evil, got)
			}
		}
	}
	untouched := []string{" a=1 ;;  b ; ", "", ";", strings.ReplaceAll(strings.Join(others, ";"), "viewer_session=1", "")}
	if got := stripped("viewer_session", append([]string(nil), untouched...)...); !reflect.DeepEqual(got, untouched) {
		t.Errorf("got %q, want %q", got, untouched)
	}
}

func TestStripCookieWithoutCookies(t *testing.T) {
	header := http.Header{"Accept": {"a"}}
	stripCookie(header, "viewer_session")
	if want := (http.Header{"Accept": {"a"}}); !reflect.DeepEqual(header, want) {
		t.Errorf("got %v", header)
	}
	if left := stripped("viewer_session", "viewer_session=evil", "viewer.session"); left != nil {
		t.Errorf("got %q", left)
	}
}

func TestStripCookieOfOtherNames(t *testing.T) {
	for _, test := range []struct{ name, line, want string }{
		{"viewer.session", "viewer.session=evil; viewer_session=evil; VIEWER session=evil; a=1", "a=1"},
		{"__Host-viewer", "__Host-viewer=evil; ..Host-viewer=evil; __host-VIEWER[x]=evil; viewer=1", "viewer=1"},
		{"a", "a=evil; A=evil; a[]=evil; ab=1; b=a", "ab=1; b=a"},
		{"-", "-=evil; --=1; _=2", "--=1; _=2"},
		{".a.", ".a.=evil; _A_[x]=evil; [a =evil; a=1", "a=1"},
	} {
		if got := strings.Join(stripped(test.name, test.line), "|"); got != test.want {
			t.Errorf("%s: got %q, want %q", test.name, got, test.want)
		}
	}
}

// PHP up to 7.4.10 decodes a cookie's name and skips the blanks in front of it
// after that.
func TestStripCookieBehindAnEscapedBlank(t *testing.T) {
	for _, line := range []string{"%20viewer_session=evil", "+viewer_session=evil", "%20%20+viewer.session=evil", " %20viewer_session[x]=evil", "%09viewer_session=evil", "%22viewer_session%22=evil"} {
		if left := stripped("viewer_session", line+"; a=1"); strings.Join(left, "|") != "a=1" {
			t.Errorf("%s: %q is left", line, left)
		}
	}
}

// whoReads returns the first parser that finds a cookie of this name in the
// lines, or nothing.
func whoReads(name string, lines []string) string {
	r := &http.Request{Header: http.Header{"Cookie": lines}}
	for _, cookie := range r.Cookies() {
		if cookie.Name == name {
			return "net/http"
		}
	}
	folded := cookietest.PHPName(name)
	for _, line := range lines {
		// Lenient: commas and white space end a pair too, quotes do not count.
		for _, pair := range strings.FieldsFunc(line, func(c rune) bool { return strings.ContainsRune(";, \t\r\n\v\f", c) }) {
			key, _, ok := strings.Cut(strings.Trim(pair, `"`), "=")
			if !ok {
				continue // nothing that a client could choose
			}
			if strings.EqualFold(cookietest.PHPName(strings.Trim(key, `"`)), folded) {
				return "a lenient parser"
			}
			if strings.EqualFold(cookietest.PHPName(cookietest.PercentDecode(strings.Trim(key, `"`))), folded) {
				return "a lenient parser that unescapes"
			}
		}
		// PHP: semicolons only, white space in front skipped, names mangled. Up
		// to 7.4.10 it decodes names and skips blanks once more after that.
		for pair := range strings.SplitSeq(line, ";") {
			key, _, _ := strings.Cut(strings.TrimLeft(pair, " \t\r\n\v\f"), "=")
			if cookietest.PHPName(key) == folded {
				return "PHP"
			}
			if cookietest.PHPName(strings.TrimLeft(cookietest.PercentDecode(strings.ReplaceAll(key, "+", " ")), " ")) == folded {
				return "older PHP"
			}
		}
	}
	return ""
}

// The parsers of the tests would find what they are to look for.
func TestWhoReads(t *testing.T) {
	for line, want := range map[string]string{
		"viewer_session=a":               "net/http",
		"a=1, viewer_session=a":          "a lenient parser",
		`"viewer_session=a"`:             "a lenient parser",
		"a=1 viewer.session=":            "a lenient parser",
		"a=1 viewer.session":             "",
		"VIEWER_SESSION=a":               "a lenient parser",
		"viewer_session[x]=a":            "a lenient parser",
		"viewer%5fsession=a":             "a lenient parser that unescapes",
		"viewer session=a":               "PHP",
		"viewer_session\x00b=a":          "a lenient parser",
		"%20+viewer_session=a":           "older PHP",
		"viewer+session=a":               "older PHP",
		"viewer%20session=a":             "a lenient parser that unescapes",
		"a=viewer_session; b=1":          "",
		"viewer_sessions=1; viewer=1":    "",
		"viewer-session=1; =; ; ,,, []=": "",
	} {
		if got := whoReads("viewer_session", []string{line}); got != want {
			t.Errorf("%q: got %q, want %q", line, got, want)
		}
	}
}

// Random texts of the pieces that matter go further than what a short run of
// the fuzzer finds.
func TestStripCookieOfRandomPieces(t *testing.T) {
	pieces := []string{
		"viewer_session", "viewer_session", "viewer", "session", "VIEWER", "_", ".", " ", "[", "]", "=", "=", ";", ";", ",", "\t", "\v", "\x00", `"`, "'",
		"%5f", "%5B", "%20", "%00", "%", "+", "%76", "iewer", "v", "a", "1", "\xff",
	}
	random := rand.New(rand.NewPCG(1, 2))
	text := func() string {
		var b strings.Builder
		for range random.IntN(8) {
			b.WriteString(pieces[random.IntN(len(pieces))])
		}
		return b.String()
	}
	removed := 0
	for range 20_000 {
		lines := []string{text(), text()}
		left := stripped("viewer_session", append([]string(nil), lines...)...)
		if found := whoReads("viewer_session", left); found != "" {
			t.Fatalf("%s finds it in %q, left of %q", found, left, lines)
		}
		if whoReads("viewer_session", lines) != "" {
			removed++
		}
		if again := stripped("viewer_session", append([]string(nil), left...)...); !reflect.DeepEqual(again, left) {
			t.Fatalf("%q becomes %q", left, again)
		}
	}
	if removed < 1_000 {
		t.Errorf("only %d texts held the cookie", removed)
	}
}

func FuzzStripCookie(f *testing.F) {
	for _, seed := range []string{
		"viewer_session=evil", "a=1; viewer_session=evil; b=2", "a=1,viewer_session=evil", `"viewer_session"=evil`, "viewer.session=a",
		"viewer session[=a", "viewer_session[x]=a", "%76iewer%5fsession%00=a", "VIEWER+SESSION=a", "viewer_session", "a=1 viewer_session", ";;viewer_session\t=\n",
		`a="x; viewer_session=y"`, "viewer_session%3D", "=viewer_session", "a=1", "", "viewer%viewer_session=%", "viewer_session ;viewer_session,",
	} {
		f.Add(seed, "a=1", "viewer_session")
		f.Add("b=2; viewer_session=evil", seed, "viewer.session")
	}
	f.Fuzz(func(t *testing.T, first, second, name string) {
		if strings.Trim(name, "._-") == "" || strings.Trim(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-") != "" {
			return // refused when the config loads
		}
		left := stripped(name, first, second)
		if found := whoReads(name, left); found != "" {
			t.Fatalf("%s finds %s in %q, left of %q and %q", found, name, left, first, second)
		}
		again := stripped(name, append([]string(nil), left...)...)
		if !reflect.DeepEqual(again, left) {
			t.Fatalf("%q becomes %q", left, again)
		}
		// Nothing appears that was not there, and nothing changes its place.
		rest := first + "\x00" + second
		for _, line := range left {
			for pair := range strings.SplitSeq(line, ";") {
				at := strings.Index(rest, pair)
				if at < 0 {
					t.Fatalf("%q in %q is none of %q and %q", pair, left, first, second)
				}
				rest = rest[at+len(pair):]
			}
		}
	})
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

package integration

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/viewersession/caddy-viewer-session/internal/cookietest"
)

// alias is a request that real servers were seen to take for one with our
// header or cookie. Its lines are bytes, as Latin-1.
type alias struct {
	ID      string
	Kind    string // header, cookie, trailer or hop-by-hop
	Lines   []string
	TakenBy []string `json:"taken_by"`
}

func readAliases(t *testing.T) []alias {
	t.Helper()
	text, err := os.ReadFile("testdata/aliases.json")
	if err != nil {
		t.Fatal(err)
	}
	var list []alias
	if err := json.Unmarshal(text, &list); err != nil {
		t.Fatal(err)
	}
	for _, a := range list {
		for i, line := range a.Lines {
			bytes := make([]byte, 0, len(line))
			for _, r := range line {
				bytes = append(bytes, byte(r)) //nolint:gosec // Latin-1
			}
			a.Lines[i] = string(bytes)
		}
	}
	return list
}

// forCookie is the row with another cookie's name than vs.
func (a alias) forCookie(name string) alias {
	escape := func(format string) string {
		var b strings.Builder
		for i := range len(name) {
			fmt.Fprintf(&b, format, name[i])
		}
		return b.String()
	}
	replace := strings.NewReplacer("%76%73", escape("%%%02x"), "%76s", "%"+fmt.Sprintf("%02x", name[0])+name[1:],
		"%u0076%u0073", escape("%%u%04x"), "%u0076s", fmt.Sprintf("%%u%04x", name[0])+name[1:],
		"vs", name, "VS", strings.ToUpper(name), "Vs", strings.ToUpper(name[:1])+name[1:])
	a.Lines = slices.Clone(a.Lines)
	for i, line := range a.Lines {
		a.Lines[i] = replace.Replace(line)
	}
	return a
}

// trailers are the names under which the rows with trailers send theirs.
const trailers = "X-Viewer-Session: EVIL\r\nx_viewer_session: EVIL\r\nX.Viewer.Session: EVIL\r\nX$Viewer$Session: EVIL\r\nX*Viewer*Session: EVIL\r\nX~Viewer~Session: EVIL\r\nCookie: vs=EVIL"

// http1 returns the row's request.
func (a alias) http1(method, path, host string) string {
	head := []string{method + " " + path + " HTTP/1.1", "Host: " + host, "Connection: close"}
	for _, other := range []string{"POST", "PUT", "PATCH", "DELETE", "OPTIONS"} {
		if strings.HasSuffix(a.ID, " "+other) {
			head[0] = other + " " + path + " HTTP/1.1"
		}
	}
	body := ""
	switch lines := strings.Join(a.Lines, "\n"); {
	case a.Kind == "trailer":
		head[0] = "POST " + path + " HTTP/1.1"
		body = "4\r\nbody\r\n0\r\n" + trailers + "\r\n\r\n"
	case strings.Contains(lines, "Content-Length: 1"):
		body = "x"
	case strings.Contains(lines, "Content-Length: 2"):
		body = "ok"
	case strings.Contains(a.ID, "HTTP/1.0"):
		head[0] = method + " " + path + " HTTP/1.0"
	}
	return strings.Join(append(head, a.Lines...), "\r\n") + "\r\n\r\n" + body
}

// wantNoEvil looks at what the app saw: no header that could be ours, and no
// cookie that any parser could take for ours, has a client's value.
func (s *stage) wantNoEvil(t *testing.T, a alias, cookie string) {
	t.Helper()
	letters := func(name string) string {
		return strings.Map(func(r rune) rune {
			if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
				return r
			}
			return -1
		}, strings.ToLower(name))
	}
	for _, request := range s.app.all() {
		var cookies []string
		for line := range strings.SplitSeq(request.head+request.trailer, "\n") {
			name, value, ok := strings.Cut(line, ":")
			if !ok {
				continue
			}
			if strings.Contains(value, "EVIL") && letters(name) == "xviewersession" && cookie == "" {
				t.Errorf("%s: the app saw %q", a.ID, line)
			}
			if strings.EqualFold(name, "Cookie") {
				cookies = append(cookies, strings.TrimPrefix(value, " "))
			}
		}
		if cookie == "" {
			continue
		}
		for i, line := range cookies {
			// Ours stands in front, once.
			if rest, ok := strings.CutPrefix(line, cookie+"=eyJ"); ok {
				_, cookies[i], _ = strings.Cut(rest, "; ")
			}
		}
		if family := cookietest.Finds(cookie, cookies); family != "" {
			t.Errorf("%s: %s finds %s in %q", a.ID, family, cookie, cookies)
		}
	}
}

// Whatever real servers take for our header or cookie, on any path, by HTTP/1.1
// and HTTP/2: what the app gets is not the client's.
func TestAliasesOfRealServers(t *testing.T) {
	list := readAliases(t)
	if len(list) < 200 {
		t.Fatalf("only %d rows", len(list))
	}
	site := func(option string) string {
		return `GATEWAY {
	viewer_session {
		endpoint API/viewer/sessions
		` + option + `
		document_path /documents/:id {
			session_path /documents/:id/session
		}
	}
	reverse_proxy APP
}
`
	}
	options := map[string]string{"": "request_header X-Viewer-Session"}
	for _, cookie := range []string{"vs", "my_vs", "__Host-viewer"} {
		options[cookie] = "request_cookie " + cookie
	}
	for cookie, option := range options {
		for _, protocol := range []string{"HTTP/1.1", "HTTP/2"} {
			t.Run(protocol+" "+option, func(t *testing.T) {
				s := newStage(t)
				var conn *http2Conn
				if protocol == "HTTP/2" {
					s.loadTLS(site(option))
					conn = dialHTTP2(t, s.gateway)
					defer func() { conn.conn.Close() }()
				} else {
					s.load(site(option), letAliasesThrough...)
				}
				arrived := 0
				for _, row := range list {
					if (row.Kind == "cookie") != (cookie != "") {
						continue
					}
					if cookie != "" {
						row = row.forCookie(cookie)
					}
					for _, path := range []string{"/documents/doc", "/other", "/documents/doc/session"} {
						s.begin()
						if conn == nil {
							s.rawBytes(row.http1("GET", path, s.gateway))
						} else {
							a := attack{target: path, header: strings.ReplaceAll(strings.Join(row.Lines, "\n"), "\r\n ", " ")}
							if row.Kind == "trailer" {
								a = attack{target: path, method: "POST", trailer: strings.ReplaceAll(trailers, "\r", "")}
							}
							if _, alive := conn.send(s.gateway, a); !alive {
								conn.conn.Close()
								conn = dialHTTP2(t, s.gateway)
							}
						}
						arrived += len(s.app.all())
						s.wantNoEvil(t, row, cookie)
					}
				}
				t.Logf("%d requests arrived", arrived)
				if arrived < 100 {
					t.Errorf("only %d requests arrived, which shows little", arrived)
				}
			})
		}
	}
}

// Without the directive they get through, so the test above can fail.
func TestAliasesGetThroughPlainCaddy(t *testing.T) {
	s := newStage(t)
	s.load("GATEWAY {\n\treverse_proxy APP\n}\n", letAliasesThrough...)
	through := map[string]int{}
	for _, row := range readAliases(t) {
		s.begin()
		s.rawBytes(row.http1("GET", "/documents/doc", s.gateway))
		for _, request := range s.app.all() {
			if strings.Contains(request.head+request.trailer, "EVIL") {
				through[row.Kind]++
			}
		}
	}
	if through["header"] < 10 || through["cookie"] < 80 || through["trailer"] < 10 {
		t.Errorf("only %v get through", through)
	}
}

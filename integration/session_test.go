package integration

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"
)

const sessionSite = `GATEWAY {
	viewer_session {
		endpoint API/viewer/sessions
		session_path /token
		script_path /viewer-session.js
		document_path /documents/:id {
			session_path /documents/:id/session
		}
		document_path /editor {
			app_provided
			session_path /editor/session
			shared
		}
	}
	reverse_proxy APP {
		flush_interval -1
	}
}
`

// session wants a token from a session path.
func (s *stage) session(path string, header ...string) (jwt string, resp *http.Response) {
	s.t.Helper()
	resp, body := s.fetch("GET", path, header...)
	var answer struct {
		JWT string `json:"jwt"`
		Exp int64  `json:"exp"`
	}
	if err := json.Unmarshal([]byte(body), &answer); err != nil || resp.StatusCode != 200 || answer.JWT == "" || answer.Exp <= time.Now().Unix() {
		s.t.Fatalf("GET %s: status %d, %v: %s", path, resp.StatusCode, err, body)
	}
	return answer.JWT, resp
}

func TestSessionPath(t *testing.T) {
	s := newStage(t)
	s.load(sessionSite)
	s.app.setAnswer("HTTP/1.1 204 No Content\nSet-Cookie: app=1\nX-Viewer-User: alice\nAccess-Control-Allow-Origin: *\n\n")
	first, resp := s.session("/documents/doc/session", "Sec-Fetch-Site", "same-origin", "X-Viewer-Session", "forged")
	if head := s.app.last().head; strings.Contains(head, forgery) || strings.Contains(head, "eyJ") {
		t.Errorf("the app saw\n%s", head)
	}
	if asked := s.api.minted(); len(asked) == 0 || asked[0].UserID != "alice" || asked[0].AllowedDocuments[0].DocumentID != "doc" {
		t.Errorf("the API was asked for %+v", asked)
	}
	for name, want := range map[string]string{
		"Set-Cookie": "app=1", "Content-Type": "application/json", "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff",
		"X-Viewer-User": "", "Access-Control-Allow-Origin": "",
	} {
		if got := resp.Header.Get(name); got != want {
			t.Errorf("%s %q, want %q", name, got, want)
		}
	}

	// A rejected token is named without its signature, so that no log holds it.
	rejected := first[:strings.LastIndex(first, ".")]
	second, _ := s.session("/documents/doc/session", "X-Viewer-Rejected", rejected)
	if first == second {
		t.Error("the rejected token came again")
	}
	if head := s.app.last().head; strings.Contains(strings.ToLower(head), "rejected") {
		t.Errorf("the app saw\n%s", head)
	}
	resp, body := s.do("GET", "/documents/doc/session", "X-Viewer-Rejected", second)
	if resp.StatusCode != 503 || resp.Header.Get("Retry-After") == "" || resp.Header.Get("Cache-Control") != "no-store" {
		t.Errorf("status %d, %v: %s", resp.StatusCode, resp.Header, body)
	}
	s.wantMints(2)

	if resp, body := s.fetch("HEAD", "/documents/doc/session"); resp.StatusCode != 200 || resp.ContentLength < 100 || body != "" {
		t.Errorf("HEAD: %d, %d bytes, %q", resp.StatusCode, resp.ContentLength, body)
	}
	for _, site := range []string{"cross-site", "same-site"} {
		s.app.forget()
		if s.get("/documents/doc/session", 403, "Sec-Fetch-Site", site); len(s.app.all()) != 0 {
			t.Errorf("the app was asked for a %s page", site)
		}
	}
	if resp, _ := s.do("GET", "/token"); resp.StatusCode != 502 {
		t.Errorf("without any id: status %d", resp.StatusCode)
	}
	log, err := os.ReadFile(s.logFile)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(log), "with its 204 on a session path it names the document in X-Viewer-Document") {
		t.Error("the log does not say what the app has to answer")
	}
}

// Without the filter of docs/security.md, Caddy's access log shows what browsers send: a
// token without its signature.
func TestRejectedTokenInTheAccessLog(t *testing.T) {
	s := newStage(t)
	s.app.setAnswer("HTTP/1.1 204 No Content\n\n")
	if err := loadText(strings.Replace(s.fill(globalOptions+sessionSite), "request>headers>X-Viewer-Rejected delete", "", 1)); err != nil {
		t.Fatal(err)
	}
	first, _ := s.session("/documents/doc/session")
	unsigned := first[:strings.LastIndex(first, ".")]
	s.session("/documents/doc/session", "X-Viewer-Rejected", unsigned)
	log, err := os.ReadFile(s.logFile)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(log), unsigned) {
		t.Error("the access log does not show the header, so this shows nothing")
	}
} // what the log must not hold is looked for when the stage is cleared

// Whatever the app answers but 204 reaches the browser as if nothing stood between.
func TestOtherAnswersOnASessionPath(t *testing.T) {
	s := newStage(t)
	s.load(sessionSite)
	for name, answer := range map[string]string{
		"redirect":  "HTTP/1.1 302 Found\nLocation: /login\nContent-Length: 5\nCache-Control: public\n\nlogin",
		"forbidden": "HTTP/1.1 403 Forbidden\nContent-Type: application/problem+json\nContent-Length: 2\n\n{}",
		"page":      "HTTP/1.1 200 OK\nContent-Type: text/html\nEtag: \"x\"\nCache-Control: max-age=60\nContent-Length: 4\n\npage",
		"trailers":  "HTTP/1.1 200 OK\nTransfer-Encoding: chunked\nTrailer: X-Viewer-Document, X-Honest\n\n4\npage\n0\nX-Viewer-Document: doc2\nX-Honest: 1\n\n",
		"hints":     "HTTP/1.1 103 Early Hints\nLink: </style.css>\nX-Viewer-Document: doc2\n\nHTTP/1.1 200 OK\nContent-Length: 4\n\npage",
	} {
		answer = strings.Replace(answer, "\n", "\nX-Viewer-User: alice\n", 1)
		s.app.setAnswer(answer)
		got := s.raw("GET /documents/doc/session HTTP/1.1\nHost: HOST\nConnection: close\n\n")
		got = strings.ReplaceAll(got, "\r\n", "\n")
		if strings.Contains(strings.ToLower(got), "x-viewer-") && name != "trailers" || strings.Contains(got, "alice") || strings.Contains(got, "doc2") {
			t.Errorf("%s: the browser is told what the app told the gateway:\n%s", name, got)
		}
		for line := range strings.SplitSeq(answer, "\n") {
			if !strings.HasPrefix(line, "X-Viewer-") && !strings.HasPrefix(line, "Trailer: ") && !strings.Contains(got, line+"\n") && !strings.HasSuffix(got, line) {
				t.Errorf("%s: %q is missing in\n%s", name, line, got)
			}
		}
	}
	s.wantMints(0)
}

func TestStreamsOnASessionPath(t *testing.T) {
	s := newStage(t)
	release := make(chan struct{})
	stream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") != "" {
			conn, buf, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			fmt.Fprint(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nX-Viewer-User: alice\r\n\r\n")
			_, _ = io.Copy(conn, buf)
			return
		}
		fmt.Fprintln(w, "first")
		_ = http.NewResponseController(w).Flush()
		<-release
		fmt.Fprintln(w, "second")
	}))
	defer stream.Close()
	s.load(strings.ReplaceAll(sessionSite, "APP", stream.Listener.Addr().String()))

	resp, err := http.Get("http://" + s.gateway + "/documents/doc/session")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	lines := bufio.NewReader(resp.Body)
	if line, err := lines.ReadString('\n'); err != nil || line != "first\n" {
		t.Fatalf("%q, %v before the app had ended", line, err)
	}
	close(release)
	if line, err := lines.ReadString('\n'); err != nil || line != "second\n" {
		t.Fatalf("%q, %v", line, err)
	}

	conn, err := net.Dial("tcp", s.gateway)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(conn, "GET /documents/doc/session HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", s.gateway)
	upgraded := bufio.NewReader(conn)
	switched, err := http.ReadResponse(upgraded, nil)
	if err != nil || switched.StatusCode != 101 || switched.Header.Get("X-Viewer-User") != "" {
		t.Fatalf("%v, %+v", err, switched)
	}
	fmt.Fprintln(conn, "hello")
	if line, err := upgraded.ReadString('\n'); err != nil || line != "hello\n" {
		t.Fatalf("%q, %v through the upgraded connection", line, err)
	}
	s.wantMints(0)
}

// Where Caddy itself says yes, and in the chains that people write.
func TestSessionChains(t *testing.T) {
	const directive = `viewer_session {
		endpoint API/viewer/sessions
		session_path /token
		document_path /documents/:id {
			session_path /documents/:id/session
		}
	}
`
	for name, tc := range map[string]struct {
		site string
		want map[string]string // document, or status
	}{
		"respond":           {directive + "respond /documents/*/session 204\nrespond page", map[string]string{"/documents/doc/session": "doc", "/documents/a.b/session": "204"}},
		"respond with more": {"header /token X-Viewer-Document fixed\n" + directive + "respond /token 204", map[string]string{"/token": "fixed"}},
		"in route":          {"route {\n" + directive + "respond 204\n}", map[string]string{"/documents/doc/session": "doc"}},
		"in handle":         {directive + "handle /documents/* {\nrespond 204\n}\nhandle {\nrespond 404\n}", map[string]string{"/documents/doc/session": "doc", "/token": "404"}},
		"handle_path":       {"handle_path /documents/* {\n" + directive + "respond 204\n}", map[string]string{"/documents/doc/session": "doc"}},
		"behind rewrite":    {"rewrite /documents/* /token\n" + directive + "respond 204", map[string]string{"/documents/doc/session": "doc", "/token": "502"}},
		"encode":            {directive + "encode gzip\nrespond 204", map[string]string{"/documents/doc/session": "doc"}},
		"twice":             {directive + directive + "respond 204", map[string]string{"/documents/doc/session": "doc"}},
		"auth":              {"basic_auth {\nuser $2a$14$Zkx19XLiW6VYouLHR5NmfOFU0z2GTNmpkT/5qqR7hx4IjWJPDhjvG\n}\n" + directive + "respond 204", map[string]string{"/documents/doc/session": "401"}},
		"file server":       {"root /nowhere\n" + directive + "file_server", map[string]string{"/documents/doc/session": "404"}},
		"handle_errors":     {directive + "error /documents/* 500\nhandle_errors {\n" + directive + "respond 204\n}", map[string]string{"/documents/doc/session": "204"}},
		"templates": {
			directive + "handle /documents/*/session {\nrespond 204\n}\nrespond `{\"result\":\"{http.viewer_session.result}\"}`",
			map[string]string{"/documents/doc/session": "doc"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStage(t)
			s.load("GATEWAY {\n" + tc.site + "\n}\n")
			for path, want := range tc.want {
				resp, body := s.fetch("GET", path)
				if len(want) == 3 && want != "doc" {
					if fmt.Sprint(resp.StatusCode) != want || strings.Contains(body, "eyJ") {
						t.Errorf("%s: status %d, want %s: %s", path, resp.StatusCode, want, body)
					}
					continue
				}
				token, _ := s.session(path)
				if got := claims(t, token)["allowed_documents"].([]any)[0].(map[string]any)["document_id"]; got != want {
					t.Errorf("%s: a token for %v, want %s", path, got, want)
				}
			}
		})
	}
}

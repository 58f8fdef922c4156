//go:build !windows

package integration

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/h2c" //nolint:staticcheck // deprecated, and still what servers run
)

// appServers are real servers, with an app that tells what it sees of the
// token's header and cookie. ADDRESS stands for where it listens. rows are those
// that the server has to take at least when it is asked directly, so that the
// test shows something.
var appServers = map[string]struct {
	command []string
	rows    int
}{
	"PHP's own":       {[]string{"php", "-d", "display_errors=0", "-S", "ADDRESS", "echo.php"}, 80},
	"gunicorn, WebOb": {[]string{"/usr/bin/python3", "-m", "gunicorn", "--bind", "ADDRESS", "--log-level", "error", "echo:wsgi"}, 100},
	"waitress, WebOb": {[]string{"/usr/bin/python3", "waitress_server.py", "ADDRESS"}, 100},
	"hypercorn":       {[]string{"/usr/bin/python3", "-m", "hypercorn", "--bind", "ADDRESS", "--log-level", "error", "echo:asgi"}, 60},
	"Puma, Rack":      {[]string{"puma", "--bind", "tcp://ADDRESS", "--quiet", "echo.ru"}, 55},
	"WEBrick":         {[]string{"ruby", "webrick.rb", "ADDRESS"}, 55},
	"Node":            {[]string{"node", "echo.js", "ADDRESS"}, 60},
	"Starman, Perl":   {[]string{"starman", "--listen", "ADDRESS", "--workers", "4", "--disable-keepalive", "echo.psgi"}, 80},
	"Tomcat":          {[]string{"java", "-cp", "/usr/share/java/tomcat10-embed-core.jar:/usr/share/java/tomcat10-embed-el.jar", "Echo.java", "ADDRESS"}, 60},
}

// startServer starts a server and waits until it listens.
func startServer(t *testing.T, command []string) (address string) {
	t.Helper()
	address = freeAddress(t)
	args := slices.Clone(command)
	for i := range args {
		args[i] = strings.ReplaceAll(args[i], "ADDRESS", address)
	}
	cmd := exec.Command(args[0], args[1:]...)
	folder, err := filepath.Abs("servers")
	if err != nil {
		t.Fatal(err)
	}
	cmd.Dir = folder
	cmd.Env = append(os.Environ(), "PYTHONDONTWRITEBYTECODE=1")
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // with its workers
	if err := cmd.Start(); err != nil {
		t.Fatalf("%v; run scripts/setup.sh", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM)
		select {
		case <-ended:
		case <-time.After(5 * time.Second):
			_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
			<-ended
		}
	})
	waitFor(t, args[0]+" does not listen", func() bool {
		select {
		case err := <-ended:
			t.Fatalf("%s: %v: %s", args[0], err, output.String())
		default:
		}
		conn, err := net.Dial("tcp", address)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
	return address
}

// echoed is what the app saw, as it says in its answer; ok is false if there is
// none, because the server refused the request.
type echoed struct{ Header, Cookie []string }

func readEcho(t *testing.T, address, request string) (seen echoed, ok bool) {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	// Some wait for more where a request is malformed.
	if err := conn.SetDeadline(time.Now().Add(time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, request); err != nil {
		return echoed{}, false
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: strings.SplitN(request, " ", 2)[0]})
	if err != nil {
		return echoed{}, false
	}
	defer resp.Body.Close()
	if resp.StatusCode != 200 || json.NewDecoder(resp.Body).Decode(&seen) != nil {
		return echoed{}, false
	}
	for _, values := range [][]string{seen.Header, seen.Cookie} {
		for i := range values {
			text, err := base64.StdEncoding.DecodeString(values[i])
			if err != nil {
				t.Fatal(err)
			}
			values[i] = string(text)
		}
	}
	return seen, true
}

func (e echoed) evil() bool {
	return slices.ContainsFunc(append(slices.Clone(e.Header), e.Cookie...), func(value string) bool { return strings.Contains(value, "EVIL") })
}

// What real servers take for our header or cookie when they are asked directly,
// they are not given through the gateway; and the token arrives.
func TestRealAppServers(t *testing.T) {
	rows := readAliases(t)
	// Caddy's access log counts the bytes of a body that its transport may still
	// be reading, when the server has answered without waiting for it.
	const site = `GATEWAY {
	log_skip
	viewer_session {
		endpoint API/viewer/sessions
		request_header X-Viewer-Session
		request_cookie vs
		document_path /documents/:id
	}
	reverse_proxy SERVER
}
`
	for name, server := range appServers {
		t.Run(name, func(t *testing.T) {
			address := startServer(t, server.command)
			s := newStage(t)
			s.load(strings.ReplaceAll(site, "SERVER", address), letAliasesThrough...)

			// The honest request: the token, in both ways.
			seen, ok := readEcho(t, s.gateway, "GET /documents/doc HTTP/1.1\r\nHost: "+s.gateway+"\r\nCookie: keep=1\r\nConnection: close\r\n\r\n")
			if !ok || len(seen.Header) == 0 || len(seen.Cookie) == 0 {
				t.Fatalf("the app saw %+v", seen)
			}
			for _, value := range append(seen.Header, seen.Cookie...) {
				if strings.Count(strings.Trim(value, `"`), ".") != 2 {
					t.Errorf("the app saw %q", value)
				}
			}

			taken := 0
			for _, row := range rows {
				direct, ok := readEcho(t, address, row.http1("GET", "/documents/doc", address))
				if ok && direct.evil() {
					taken++
				}
				for _, path := range []string{"/documents/doc", "/other"} {
					if through, ok := readEcho(t, s.gateway, row.http1("GET", path, s.gateway)); ok && through.evil() {
						t.Errorf("%s: through the gateway the app sees %q", row.ID, through)
					}
				}
			}
			t.Logf("%d of %d rows are taken directly", taken, len(rows))
			if taken < server.rows {
				t.Errorf("only %d rows are taken directly, want %d: the test shows little", taken, server.rows)
			}
		})
	}
}

// upgrade is a request that asks for another protocol.
func upgrade(path, address, lines string) string {
	return "GET " + path + " HTTP/1.1\r\nHost: " + address + "\r\n" + lines + "\r\n\r\n"
}

const h2cUpgrade = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__"

// A client that speaks HTTP/2 with the app itself goes around the gateway: its
// own header and cookie arrive. No upgrade but to websocket is passed on.
func TestNoTunnelToTheApp(t *testing.T) {
	hypercorn := startServer(t, appServers["hypercorn"].command)
	goServer := httptestH2C(t)
	for name, address := range map[string]string{"hypercorn": hypercorn, "Go": goServer} {
		t.Run(name, func(t *testing.T) {
			// The trap is set: directly, it opens.
			if answer := answerTo(t, address, upgrade("/documents/doc", address, h2cUpgrade)); !strings.HasPrefix(answer, "HTTP/1.1 101") {
				t.Fatalf("the server does not speak h2c: %.100s", answer)
			}
			s := newStage(t)
			s.load(`GATEWAY {
	viewer_session {
		endpoint API/viewer/sessions
		document_path /documents/:id
	}
	reverse_proxy `+address+`
}
`, letAliasesThrough...)
			for _, lines := range []string{
				h2cUpgrade,
				strings.Replace(h2cUpgrade, "h2c", "H2C", 1),
				"Connection: upgrade, http2-settings\r\nUpgrade:\th2c \r\nHTTP2-Settings: AAMAAABkAAQAAP__",
				"Connection: Upgrade\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__",
				"Connection: Upgrade\r\nConnection: HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__",
				"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c, websocket\r\nHTTP2-Settings: AAMAAABkAAQAAP__",
				"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: websocket, h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__",
				"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: websocket\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__",
				"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nUpgrade: websocket\r\nHTTP2-Settings: AAMAAABkAAQAAP__",
				"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c/1, TLS/1.0\r\nHTTP2-Settings: AAMAAABkAAQAAP__",
			} {
				for _, path := range []string{"/documents/doc", "/other"} {
					answer := answerTo(t, s.gateway, upgrade(path, s.gateway, lines))
					if strings.HasPrefix(answer, "HTTP/1.1 101") || answer == "" {
						t.Errorf("%s, %q: %.100s", path, lines, answer)
					}
				}
			}
		})
	}
}

// answerTo returns the first line of the answer.
func answerTo(t *testing.T, address, request string) string {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, request); err != nil {
		t.Fatal(err)
	}
	line, _ := bufio.NewReader(conn).ReadString('\n')
	return line
}

// httptestH2C is Go's own server for h2c.
func httptestH2C(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	handler := h2c.NewHandler(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "page") }), new(http2.Server)) //nolint:staticcheck // the upgrade is what is tested
	server := &http.Server{Handler: handler}                                                                                               //nolint:gosec // a test's
	var running sync.WaitGroup
	running.Go(func() { _ = server.Serve(listener) })
	t.Cleanup(func() {
		server.Close()
		running.Wait()
	})
	return listener.Addr().String()
}

// Of what the app is asked to speak, only websocket arrives, and an honest
// websocket works as ever.
func TestWebsocketsPass(t *testing.T) {
	s := newStage(t)
	s.load(simpleSite)
	for _, test := range []struct{ lines, upgrade string }{
		{"Connection: Upgrade\r\nUpgrade: websocket", "websocket"},
		{"Connection: keep-alive, Upgrade\r\nUpgrade: WebSocket", "WebSocket"},
		{"Connection: Upgrade\r\nUpgrade: h2c, websocket", "websocket"},
		{"Connection: Upgrade\r\nUpgrade: h2c\r\nUpgrade: \twebsocket ", "websocket"},
		{"Connection: Upgrade\r\nUpgrade: h2c", ""},
		{"Connection: Upgrade\r\nUpgrade: websocket2", ""},
		{"Connection: Upgrade\r\nUpgrade: x-websocket", ""},
	} {
		s.begin()
		if test.upgrade != "" {
			s.app.setAnswer("HTTP/1.1 101 Switching Protocols\nConnection: Upgrade\nUpgrade: " + test.upgrade + "\n\n")
		} else {
			s.app.setAnswer("")
		}
		answer := answerTo(t, s.gateway, upgrade("/documents/doc", s.gateway, test.lines+"\r\nHTTP2-Settings: AAMAAABkAAQAAP__"))
		if got := strings.HasPrefix(answer, "HTTP/1.1 101"); got != (test.upgrade != "") {
			t.Errorf("%q: %s", test.lines, answer)
		}
		seen := s.app.last()
		if got := strings.Join(seen.values("Upgrade"), "|"); !strings.EqualFold(got, test.upgrade) || strings.Contains(strings.ToLower(seen.head), "http2-settings") {
			t.Errorf("%q: the app saw\n%s", test.lines, seen.head)
		}
	}
}

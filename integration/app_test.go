package integration

import (
	"bufio"
	"io"
	"net"
	"net/textproto"
	"strconv"
	"strings"
	"sync"
	"testing"

	_ "github.com/caddyserver/caddy/v2/modules/standard"

	_ "github.com/viewersession/caddy-viewer-session"
)

// app is a web app that keeps the raw bytes of every request.
type app struct {
	address string

	mu       sync.Mutex
	requests []seen
	watch    func(seen) // if set, requests go here and are not kept
	answer   string     // raw; empty for 200 with a body
}

// seen is one request as the app received it.
type seen struct {
	head    string // request line and headers, as sent
	trailer string
	body    string
}

func newApp(t *testing.T) *app {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	a := &app{address: ln.Addr().String()}
	var conns sync.WaitGroup
	var mu sync.Mutex
	open := make(map[net.Conn]bool)
	conns.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open[conn] = true
			mu.Unlock()
			conns.Go(func() {
				a.serve(conn)
				mu.Lock()
				delete(open, conn)
				mu.Unlock()
			})
		}
	})
	t.Cleanup(func() {
		ln.Close()
		mu.Lock()
		for conn := range open {
			conn.Close()
		}
		mu.Unlock()
		conns.Wait()
	})
	return a
}

func (a *app) serve(conn net.Conn) {
	defer conn.Close()
	r := bufio.NewReader(conn)
	for {
		request, err := readRaw(r)
		if err != nil {
			return
		}
		a.mu.Lock()
		if a.watch != nil {
			a.watch(request)
		} else {
			a.requests = append(a.requests, request)
		}
		answer := a.answer
		a.mu.Unlock()
		if answer == "" {
			answer = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n"
			if !strings.HasPrefix(request.head, "HEAD ") { // a body would spoil the connection
				answer += "page"
			}
		}
		if _, err := io.WriteString(conn, answer); err != nil {
			return
		}
	}
}

// readRaw reads one request without tidying it up.
func readRaw(r *bufio.Reader) (seen, error) {
	var request seen
	head, err := readBlock(r)
	if err != nil {
		return seen{}, err
	}
	request.head = head
	length := 0
	chunked := false
	for line := range strings.SplitSeq(head, "\n") {
		name, value, _ := strings.Cut(line, ":")
		switch textproto.TrimString(strings.ToLower(name)) {
		case "content-length":
			length, _ = strconv.Atoi(textproto.TrimString(value))
		case "transfer-encoding":
			chunked = true
		}
	}
	if !chunked {
		body := make([]byte, length)
		_, err := io.ReadFull(r, body)
		request.body = string(body)
		return request, err
	}
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return seen{}, err
		}
		size, err := strconv.ParseInt(strings.TrimSpace(line), 16, 32)
		if err != nil {
			return seen{}, err
		}
		if size == 0 {
			break
		}
		chunk := make([]byte, size+2)
		if _, err := io.ReadFull(r, chunk); err != nil {
			return seen{}, err
		}
		request.body += string(chunk[:size])
	}
	request.trailer, err = readBlock(r)
	return request, err
}

// readBlock reads up to and including an empty line.
func readBlock(r *bufio.Reader) (string, error) {
	var b strings.Builder
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return "", err
		}
		if strings.TrimRight(line, "\r\n") == "" {
			return b.String(), nil
		}
		b.WriteString(strings.TrimRight(line, "\r\n") + "\n")
	}
}

func (a *app) last() seen {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.requests) == 0 {
		return seen{}
	}
	return a.requests[len(a.requests)-1]
}

func (a *app) all() []seen {
	a.mu.Lock()
	defer a.mu.Unlock()
	return append([]seen(nil), a.requests...)
}

func (a *app) forget() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.requests = nil
}

// setWatch has watch called for each request, one at a time.
func (a *app) setWatch(watch func(seen)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.watch = watch
}

func (a *app) setAnswer(raw string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.answer = strings.ReplaceAll(raw, "\n", "\r\n")
}

// values returns the values of every header line whose name folds to name.
func (s seen) values(name string) []string {
	fold := strings.NewReplacer("_", "-", ".", "-")
	var values []string
	for line := range strings.SplitSeq(s.head+s.trailer, "\n") {
		n, value, ok := strings.Cut(line, ":")
		if ok && strings.EqualFold(fold.Replace(n), name) {
			values = append(values, strings.TrimSpace(value))
		}
	}
	return values
}

// token wants exactly one token in the default header.
func (s seen) token(t *testing.T) string {
	t.Helper()
	values := s.values("X-Viewer-Session")
	if len(values) != 1 || strings.Count(values[0], ".") != 2 {
		t.Fatalf("the app saw %d tokens:\n%s", len(values), s.head)
	}
	return values[0]
}

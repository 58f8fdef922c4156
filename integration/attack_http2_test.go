package integration

import (
	"bytes"
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// The same hostile requests by HTTP/2, as frames of our own. One that the server
// refuses by itself has not got through either.

// loadTLS serves the site under a certificate of the test's.
func (s *stage) loadTLS(site string) {
	s.t.Helper()
	srv := httptest.NewTLSServer(nil) // for its certificate, which is for 127.0.0.1
	certificate := srv.TLS.Certificates[0]
	srv.Close()
	key, err := x509.MarshalPKCS8PrivateKey(certificate.PrivateKey)
	if err != nil {
		s.t.Fatal(err)
	}
	folder := filepath.Dir(s.logFile)
	for name, block := range map[string]*pem.Block{
		"cert.pem": {Type: "CERTIFICATE", Bytes: certificate.Certificate[0]},
		"key.pem":  {Type: "PRIVATE KEY", Bytes: key},
	} {
		if err := os.WriteFile(filepath.Join(folder, name), pem.EncodeToMemory(block), 0o600); err != nil {
			s.t.Fatal(err)
		}
	}
	folder = filepath.ToSlash(folder)
	site = strings.Replace(site, "GATEWAY {", fmt.Sprintf("https://%s {\n\ttls %q %q", s.gateway, folder+"/cert.pem", folder+"/key.pem"), 1)
	s.load(site, letAliasesThrough...)
}

// fields returns the request's header lines, and its trailers', as HTTP/2
// has them: names in lower case, none of Connection.
func (a attack) fields() (header, trailer [][2]string) {
	split := func(text string) (fields [][2]string) {
		for line := range strings.SplitSeq(text, "\n") {
			name, value, ok := strings.Cut(line, ":")
			if name = strings.ToLower(name); ok && name != "connection" && name != "expect" {
				fields = append(fields, [2]string{name, strings.TrimPrefix(value, " ")})
			}
		}
		return fields
	}
	return split(a.header), split(a.trailer)
}

// http2Conn sends frames.
type http2Conn struct {
	t       *testing.T
	conn    net.Conn
	framer  *http2.Framer
	encoded bytes.Buffer
	encoder *hpack.Encoder
	stream  uint32
}

func dialHTTP2(t *testing.T, address string) *http2Conn {
	t.Helper()
	conn, err := tls.Dial("tcp", address, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}}) //nolint:gosec // a test's certificate
	if err != nil {
		t.Fatal(err)
	}
	if protocol := conn.ConnectionState().NegotiatedProtocol; protocol != "h2" {
		t.Fatalf("the server speaks %q", protocol)
	}
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	c := &http2Conn{t: t, conn: conn, framer: http2.NewFramer(conn, conn), stream: 1}
	c.encoder = hpack.NewEncoder(&c.encoded)
	c.framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	c.framer.AllowIllegalWrites = true
	if err := c.framer.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	return c
}

func (c *http2Conn) writeHeaders(end bool, fields ...[2]string) {
	c.encoded.Reset()
	for _, f := range fields {
		if err := c.encoder.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]}); err != nil {
			c.t.Fatal(err)
		}
	}
	if err := c.framer.WriteHeaders(http2.HeadersFrameParam{
		StreamID: c.stream, BlockFragment: c.encoded.Bytes(), EndStream: end, EndHeaders: true,
	}); err != nil {
		c.t.Fatal(err)
	}
}

// send returns the answer's status: "" if the server reset the stream or
// closed the connection.
func (c *http2Conn) send(host string, a attack) (status string, alive bool) {
	if err := c.conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		c.t.Fatal(err)
	}
	header, trailer := a.fields()
	pseudo := [][2]string{
		{":method", cmp.Or(a.method, "GET")},
		{":scheme", "https"},
		{":authority", host},
		{":path", strings.ReplaceAll(cmp.Or(a.target, "/documents/doc"), "HOST", host)},
	}
	c.writeHeaders(trailer == nil, append(pseudo, header...)...)
	if trailer != nil {
		if err := c.framer.WriteData(c.stream, false, []byte("body")); err != nil {
			c.t.Fatal(err)
		}
		c.writeHeaders(true, trailer...)
	}
	defer func() { c.stream += 2 }()
	for {
		frame, err := c.framer.ReadFrame()
		if timeout, ok := errors.AsType[net.Error](err); ok && timeout.Timeout() {
			c.t.Fatal(err)
		}
		if err != nil {
			return status, false
		}
		switch frame := frame.(type) {
		case *http2.SettingsFrame:
			if !frame.IsAck() {
				err = c.framer.WriteSettingsAck()
			}
		case *http2.GoAwayFrame:
			return status, false
		case *http2.RSTStreamFrame:
			if frame.StreamID == c.stream {
				return status, true
			}
		case *http2.MetaHeadersFrame:
			status = frame.PseudoValue("status")
			if frame.StreamEnded() {
				return status, true
			}
		case *http2.DataFrame:
			if frame.StreamEnded() {
				return status, true
			}
		}
		if err != nil {
			c.t.Fatal(err)
		}
	}
}

func TestHostileRequestsByHTTP2(t *testing.T) {
	s := newStage(t)
	s.loadTLS(bothCarriers)
	list := attacks()
	// What only HTTP/2 has: cookies in pieces, names in capitals, fields that
	// belong to HTTP/1.1, pseudo-headers twice or late.
	for name, header := range map[string]string{
		"crumbs":                "Cookie: honest=1\nCookie: viewer_session=forged\nCookie: more=2",
		"crumbs, ours cut":      "Cookie: honest=1; viewer_\nCookie: session=forged2\nCookie: viewer_session=forged",
		"crumbs, quoted across": "Cookie: honest=1; a=\"\nCookie: viewer_session=forged\nCookie: \"",
		"empty crumbs":          "Cookie: honest=1\nCookie: \nCookie: viewer_session=forged\nCookie: ",
	} {
		keeps := []string{"honest=1"}
		if strings.Contains(header, "forged2") { // two crumbs are two cookies
			header = strings.ReplaceAll(header, "forged2", "mine")
			keeps = append(keeps, "session=mine")
		}
		list = append(list, attack{name: "HTTP/2 " + name, header: header, keeps: keeps})
	}
	conn := dialHTTP2(t, s.gateway)
	defer func() { conn.conn.Close() }()
	refused := 0
	for _, a := range list {
		t.Run(a.name, func(t *testing.T) {
			s.begin()
			conn.t = t
			status, alive := conn.send(s.gateway, a)
			if !alive {
				conn.conn.Close()
				conn = dialHTTP2(t, s.gateway)
			}
			if len(s.app.all()) == 0 && status != "200" {
				refused++
				return
			}
			s.judge(t, a, status)
		})
	}
	t.Logf("%d hostile requests, of which the server refused %d itself", len(list), refused)
	if refused > len(list)/10 {
		t.Errorf("the server refused %d of %d by itself: the table shows little", refused, len(list))
	}
}

// Fields that HTTP/2 forbids are refused by the server or do no harm.
func TestForbiddenFieldsByHTTP2(t *testing.T) {
	s := newStage(t)
	s.loadTLS(bothCarriers)
	for name, fields := range map[string][][2]string{
		"capitals":             {{"X-Viewer-Session", forgery}},
		"connection":           {{"connection", "x-viewer-session"}},
		"connection of cookie": {{"connection", "cookie, close"}},
		"keep-alive":           {{"keep-alive", "timeout=5"}},
		"transfer-encoding":    {{"transfer-encoding", "chunked"}, {"x-viewer-session", forgery}},
		"upgrade":              {{"upgrade", "h2c"}, {"x-viewer-session", forgery}},
		"te":                   {{"te", "x-viewer-session"}, {"x-viewer-session", forgery}},
		"path twice":           {{":path", "/documents/other"}},
		"host beside":          {{"host", "elsewhere"}, {"x-viewer-session", forgery}},
		"CR LF in a value":     {{"x-honest", "1\r\nX-Viewer-Session: forged"}},
		"LF in a value":        {{"x-honest", "1\nX-Viewer-Session: forged"}},
		"colon in a name":      {{"x-viewer-session:", forgery}},
		"space in a name":      {{"x-viewer-session ", forgery}},
		"empty name":           {{"", forgery}},
		"content-length lies":  {{"content-length", "5"}, {"x-viewer-session", forgery}},
	} {
		t.Run(name, func(t *testing.T) {
			conn := dialHTTP2(t, s.gateway)
			defer conn.conn.Close()
			s.begin()
			conn.writeHeaders(false, append([][2]string{
				{":method", "POST"}, {":scheme", "https"}, {":authority", s.gateway}, {":path", "/documents/doc"},
			}, fields...)...)
			if err := conn.framer.WriteData(conn.stream, true, nil); err != nil {
				t.Fatal(err)
			}
			status := ""
			if err := conn.conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
				t.Fatal(err)
			}
			for status == "" {
				frame, err := conn.framer.ReadFrame()
				if err != nil {
					break
				}
				if headers, ok := frame.(*http2.MetaHeadersFrame); ok {
					status = headers.PseudoValue("status")
				}
				if reset, ok := frame.(*http2.RSTStreamFrame); ok && reset.StreamID == conn.stream {
					break
				}
			}
			t.Logf("status %q", status)
			if len(s.app.all()) > 0 || status == "200" {
				s.judge(t, attack{}, status)
			}
		})
	}
}

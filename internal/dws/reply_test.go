package dws

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/viewersession/caddy-viewer-session/internal/clock"
	"github.com/viewersession/caddy-viewer-session/internal/dwstest"
)

func TestGoodReplies(t *testing.T) {
	soon := time.Now().Add(10 * time.Minute).Unix()
	late := time.Now().Add(48 * time.Hour).Unix()
	for _, test := range []struct {
		name   string
		status int
		reply  string
		exp    int64 // 0 for the one asked for
		hasExp bool
	}{
		{"201", 201, dwstest.Reply(map[string]any{"exp": soon}), soon, true},
		{"200", 200, dwstest.Reply(map[string]any{"exp": soon}), soon, true},
		{"without exp", 201, dwstest.Reply(map[string]any{"user_id": "ann"}), 0, false},
		{"exp is null", 201, dwstest.Reply(map[string]any{"exp": nil}), 0, false},
		{"more than asked for", 201, dwstest.Reply(map[string]any{"exp": late}), 0, true},
		{"other members", 201, `{"x": {"jwt": 5}, "JWT": "a", "jwt": "` + dwstest.JWT(map[string]any{"exp": soon}) + `"}`, soon, true},
		{"white space", 201, " \n" + dwstest.Reply(map[string]any{"exp": soon}) + "\n", soon, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			before := time.Now().Add(time.Hour).Unix()
			got, err := newDWSTest(t, dwstest.Answering(test.status, test.reply)).mint()
			after := time.Now().Add(time.Hour).Unix()
			if err != nil || got.HasExp != test.hasExp || strings.Count(got.JWT, ".") != 2 {
				t.Fatalf("got %+v, %v", got, err)
			}
			if test.exp != 0 && got.Exp != test.exp || test.exp == 0 && (got.Exp < before || got.Exp > after) {
				t.Errorf("exp is %d", got.Exp)
			}
		})
	}
}

func TestStatusesBecomeReasons(t *testing.T) {
	const keyHint = "; the key is refused: check api_key. An account has a Viewer key and a Processor key, both begin with pdf_live_, and only the Viewer key is accepted here"
	const addressHint = "; check endpoint: the API does not look documents up when it mints, so it is the address that is unknown"
	for _, test := range []struct {
		status     int
		retryAfter string
		reason     Reason
		hint       string
	}{
		{401, "", KeyRefused, keyHint},
		{403, "", KeyRefused, keyHint},
		{403, "5", KeyRefused, keyHint},
		{404, "", Refused, addressHint},
		{400, "", Refused, ""},
		{402, "", Refused, ""},
		{405, "", Refused, ""},
		{409, "", Refused, ""},
		{413, "", Refused, ""},
		{415, "", Refused, ""},
		{422, "", Refused, ""},
		{422, "5", Refused, ""},
		{408, "", Unavailable, ""},
		{429, "", Throttled, ""},
		{429, "7", Throttled, ""},
		{429, "soon", Throttled, ""},
		{500, "", Unavailable, ""},
		{500, "5", Unavailable, ""},
		{501, "", Unavailable, ""},
		{502, "", Unavailable, ""},
		{503, "", Unavailable, ""},
		{503, "7", Throttled, ""},
		{503, "soon", Throttled, ""},
		{504, "", Unavailable, ""},
		{599, "", Unavailable, ""},
	} {
		t.Run(fmt.Sprint(test.status, test.retryAfter), func(t *testing.T) {
			var header []string
			if test.retryAfter != "" {
				header = []string{"Retry-After", test.retryAfter}
			}
			d := newDWSTest(t, dwstest.Answering(test.status, "<html>no JSON eyJ "+dwstest.Key+"</html>", header...))
			before := time.Now()
			f := d.wantError(t, test.reason)
			after := time.Now()
			if f.Unsent || f.StatusCode != test.status {
				t.Errorf("status code %d, and unsent is %v", f.StatusCode, f.Unsent)
			}
			if want := fmt.Sprintf("%s answered %d%s", d.endpoint.Host, test.status, test.hint); f.Error() != want {
				t.Errorf("got  %v\nwant %s", f, want)
			}
			if test.reason == Throttled && test.retryAfter == "7" {
				if at := f.RetryAt.Wall(); at.Before(before.Add(7*time.Second)) || at.After(after.Add(7*time.Second)) {
					t.Errorf("retryAt is in %v", f.RetryAt.Wall().Sub(before))
				}
			} else if !f.RetryAt.IsZero() {
				t.Errorf("retryAt is in %v", f.RetryAt.Wall().Sub(before))
			}
		})
	}
}

// A success that is none: whatever it is, the client gets 502, and no token.
func TestOtherSuccessesAreFailures(t *testing.T) {
	for _, status := range []int{202, 203, 204, 205, 206, 226, 299, 304} {
		body := dwstest.Reply(map[string]any{"exp": time.Now().Add(time.Hour).Unix()})
		if status == 204 || status == 304 {
			body = ""
		}
		got, err := newDWSTest(t, dwstest.Answering(status, body)).mint()
		if f, ok := errors.AsType[*Error](err); !ok || got.JWT != "" || strings.Contains(f.Error(), "eyJ") {
			t.Errorf("%d: got %+v, %v", status, got, err)
		}
	}
}

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC)
	for value, want := range map[string]time.Duration{ // 0: none worth believing
		"1":                              time.Second,
		"120":                            2 * time.Minute,
		"007":                            7 * time.Second,
		"300":                            5 * time.Minute,
		"301":                            5 * time.Minute,
		"31536000":                       5 * time.Minute,
		"9223372036854775807":            5 * time.Minute,
		"18446744073709551615":           5 * time.Minute,
		"Sun, 22 Nov 2026 10:00:30 GMT":  30 * time.Second,
		"Sunday, 22-Nov-26 10:01:00 GMT": time.Minute,
		"Sun Nov 22 10:02:00 2026":       2 * time.Minute,
		"Sun, 22 Nov 2026 10:05:01 GMT":  5 * time.Minute,
		"Mon, 22 Nov 2027 10:00:00 GMT":  5 * time.Minute,
		"Fri, 31 Dec 9999 23:59:59 GMT":  5 * time.Minute,
		"Sun, 22 Nov 2026 10:00:00 GMT":  0,
		"Sun, 22 Nov 2026 09:59:59 GMT":  0,
		"Thu, 01 Jan 1970 00:00:00 GMT":  0,
		"":                               0,
		"0":                              0,
		"-1":                             0,
		"-9223372036854775808":           0,
		"+5":                             0,
		"1.5":                            0,
		"1e2":                            0,
		"0x10":                           0,
		"1_0":                            0,
		"5s":                             0,
		"5, 6":                           0,
		"soon":                           0,
		"٣":                              0,
		"tomorrow 10:00":                 0,
		"2026-11-22T10:01:00Z":           0,
		"Sun, 99 Nov 2026 10:00:30 GMT":  0,
	} {
		got := readRetryAfter(value, "", clock.At(now))
		switch {
		case want == 0 && !got.IsZero():
			t.Errorf("%q: got %v", value, got.Since(clock.At(now)))
		case want != 0 && got != clock.At(now).Add(want):
			t.Errorf("%q: got %v, want %v", value, got.Since(clock.At(now)), want)
		}
	}
}

func TestRepliesWithoutAUsableToken(t *testing.T) {
	const noObject = "answered 201, but not with a JSON object; check that endpoint is the session endpoint of the DWS Viewer API"
	const noJWT = "answered 201, but without a jwt; check that endpoint is the session endpoint of the DWS Viewer API"
	jwt := dwstest.JWT(map[string]any{"exp": time.Now().Add(time.Hour).Unix()})
	for _, test := range []struct{ name, reply, want string }{
		{"nothing", "", noObject},
		{"page", "<html>" + jwt + "</html>", noObject},
		{"bare token", jwt, noObject},
		{"token as a JSON string", `"` + jwt + `"`, noObject},
		{"array", `[{"jwt": "` + jwt + `"}]`, noObject},
		{"cut short", `{"jwt": "` + jwt + `"`, noObject},
		{"followed by more", `{"jwt": "` + jwt + `"} {}`, noObject},
		{"null", `null`, noJWT},
		{"empty object", `{}`, noJWT},
		{"other name", `{"token": "` + jwt + `"}`, noJWT},
		{"capitals", `{"JWT": "` + jwt + `"}`, noJWT},
		{"capital", `{"Jwt": "` + jwt + `"}`, noJWT},
		{"nested", `{"session": {"jwt": "` + jwt + `"}}`, noJWT},
		{"empty jwt", `{"jwt": ""}`, noJWT},
		{"jwt is null", `{"jwt": null}`, noJWT},
		{"jwt is a number", `{"jwt": 5}`, noJWT},
		{"jwt is an object", `{"jwt": {"jwt": "` + jwt + `"}}`, noJWT},
		{"jwt is an array", `{"jwt": ["` + jwt + `"]}`, noJWT},
		{"not three parts", `{"jwt": "a.b"}`, "answered 201, but the token has 2 parts; a JWT has 3"},
		{"line break", `{"jwt": "` + jwt + `\r\nX-Admin: 1"}`, "answered 201, but the token has an empty part or bytes that no JWT has"},
		{"expired", dwstest.Reply(map[string]any{"exp": 5}), "answered 201, but the token has expired already, "},
		{"exp is a string", dwstest.Reply(map[string]any{"exp": "5"}), "answered 201, but the token's exp is not a number"},
		{"another document's", dwstest.Reply(map[string]any{"document_id": "doc2"}), "answered 201, but the token is for another document than the one asked for"},
		{"another user's", dwstest.Reply(map[string]any{"user_id": "bob"}), "answered 201, but the token is for another user than the one asked for"},
		{"too large a token", `{"jwt": "` + jwt + strings.Repeat("a", 8192) + `"}`, "more than the 8192 that are accepted"},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := newDWSTest(t, dwstest.Answering(201, test.reply)).wantError(t, InvalidReply)
			if !strings.Contains(f.Error(), test.want) || f.Unsent {
				t.Errorf("got  %v\nwant %s", f, test.want)
			}
		})
	}
}

// paddedReply returns a good reply of exactly so many bytes.
func paddedReply(size int) string {
	reply := dwstest.Reply(map[string]any{"exp": time.Now().Add(time.Hour).Unix()})
	const member = `,"x":""}`
	return strings.TrimSuffix(reply, "}") + `,"x":"` + strings.Repeat("x", size-len(reply)+1-len(member)) + `"}`
}

func TestReplySizeIsBounded(t *testing.T) {
	if got := len(paddedReply(65536)); got != 65536 {
		t.Fatalf("the padded reply has %d bytes", got)
	}
	if _, err := newDWSTest(t, dwstest.Answering(201, paddedReply(65536))).mint(); err != nil {
		t.Errorf("64 KiB: %v", err)
	}
	f := newDWSTest(t, dwstest.Answering(201, paddedReply(65537))).wantError(t, InvalidReply)
	if !strings.Contains(f.Error(), "answered 201, but with more than 65536 bytes") {
		t.Errorf("got %v", f)
	}
	// A reply without an end is not read to its end.
	endless := func(status int) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(status)
			for line := strings.Repeat("x", 4096); ; {
				if _, err := io.WriteString(w, line); err != nil {
					return
				}
			}
		}
	}
	newDWSTest(t, endless(201)).wantError(t, InvalidReply)
	newDWSTest(t, endless(500)).wantError(t, Unavailable)
}

func zipped(text string) string {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	io.WriteString(z, text)
	z.Close()
	return b.String()
}

func TestZippedReplies(t *testing.T) {
	good := zipped(dwstest.Reply(map[string]any{"exp": time.Now().Add(time.Hour).Unix()}))
	if _, err := newDWSTest(t, dwstest.Answering(201, good, "Content-Encoding", "gzip")).mint(); err != nil {
		t.Error(err)
	}
	bomb := zipped(`{"x":"` + strings.Repeat("x", 10<<20) + `"}`)
	if len(bomb) > maxReplyBytes {
		t.Fatalf("the bomb has %d bytes", len(bomb))
	}
	newDWSTest(t, dwstest.Answering(201, bomb, "Content-Encoding", "gzip")).wantError(t, InvalidReply)
	got, err := newDWSTest(t, dwstest.Answering(201, "no gzip", "Content-Encoding", "gzip")).mint()
	if f, ok := errors.AsType[*Error](err); !ok || f.Unsent {
		t.Errorf("broken gzip: got %+v, %v", got, err)
	}
}

func TestReplyHeadersAreBounded(t *testing.T) {
	d := newDWSTest(t, dwstest.Answering(201, dwstest.Reply(map[string]any{}), "X-Large", strings.Repeat("x", 100<<10)))
	d.wantError(t, Unavailable)
}

func TestErrorsQuoteTheAPIsDetails(t *testing.T) {
	jwt := dwstest.JWT(map[string]any{"exp": 1})
	encode := base64.RawURLEncoding.EncodeToString
	loose := encode([]byte(`{ "alg": "HS256" }`)) + "." + encode([]byte(`{ "exp": 1793769299 }`)) + "." + encode([]byte("signature"))
	broken := encode([]byte("{\n\t\"alg\": \"HS256\"\n}")) + "." + encode([]byte("{\n\t\"exp\": 1793769299\n}")) + "." + encode([]byte("signature"))
	long := strings.Repeat("long ", 100)
	for _, test := range []struct{ name, reply, want string }{
		{"details", `{"details": "no such permission", "status": 400, "requestId": "req-7", "failingPaths": [{"path": "$.x", "details": "y"}]}`, " (no such permission) ($.x: y) (requestId req-7)"},
		{"failing paths", `{"failingPaths": [{"path": "$.a"}, {"details": "b"}, {"path": "$.c", "details": "key ` + dwstest.Key + `"}, {"path": "$.d"}]}`, " ($.a) (b) ($.c: key REDACTED)"},
		{"failing paths of another kind", `{"failingPaths": "$.a", "detail": "d"}`, " (d)"},
		{"detail, title", `{"title": "Bad Request", "detail": "no such permission"}`, " (no such permission)"},
		{"error", `{"error": "unauthorized"}`, " (unauthorized)"},
		{"error of another kind", `{"error": {"code": 1}, "message": "m"}`, " (m)"},
		{"errorMessage", `{"errorMessage": "no such permission"}`, " (no such permission)"},
		{"requestId alone", `{"requestId": "req-7"}`, " (requestId req-7)"},
		{"other shapes", `{"details": {"a": 1}, "errorMessage": 5, "requestId": null}`, ""},
		{"no JSON", "details: x", ""},
		{"nothing", "", ""},
		{"the key", `{"details": "bad key ` + dwstest.Key + `!"}`, " (bad key REDACTED!)"},
		{"the header", `{"details": "Authorization: Bearer ` + dwstest.Key + `"}`, " (Authorization: Bearer REDACTED)"},
		{"another key", `{"details": "bad key pdf_live_another, use pdf_test_one"}`, " (bad key REDACTED, use REDACTED)"},
		{"a token", `{"errorMessage": "expired: ` + jwt + `"}`, " (expired: REDACTED)"},
		{"a token whose header has a blank", `{"details": "expired: ` + loose + `"}`, " (expired: REDACTED)"},
		{"a token whose header has a line break", `{"details": "expired: ` + broken + `"}`, " (expired: REDACTED)"},
		{"a key as requestId", `{"requestId": "` + dwstest.Key + `"}`, " (requestId REDACTED)"},
		{"a token as requestId", `{"requestId": "` + jwt + `"}`, " (requestId REDACTED)"},
		{"line breaks", `{"details": "a\r\nlevel=error msg=b\u0000\u001b[31m\u0085"}`, " (a  level=error msg=b  [31m )"},
		{"long", `{"details": "` + long + `"}`, " (" + long[:300] + "…)"},
		{"long requestId", `{"requestId": "` + strings.Repeat("x", 400) + `"}`, " (requestId " + strings.Repeat("x", 290) + "…)"},
		{"300 bytes", `{"details": "` + strings.Repeat("x", 300) + `"}`, " (" + strings.Repeat("x", 300) + ")"},
		{"cut inside a rune", `{"details": "x` + strings.Repeat("é", 200) + `"}`, " (x" + strings.Repeat("é", 149) + "…)"},
		{"a key where it is cut", `{"details": "` + strings.Repeat("x", 293) + " " + dwstest.Key + `"}`, " (" + strings.Repeat("x", 293) + " REDACT…)"},
	} {
		t.Run(test.name, func(t *testing.T) {
			d := newDWSTest(t, dwstest.Answering(400, test.reply))
			f := d.wantError(t, Refused)
			if want := d.endpoint.Host + " answered 400" + test.want; f.Error() != want {
				t.Errorf("got  %v\nwant %s", f, want)
			}
			if !utf8.ValidString(f.Error()) {
				t.Errorf("not UTF-8: %q", f.Error())
			}
		})
	}
}

// A key need not begin like those that are known today.
func TestDetailsHideAnyKey(t *testing.T) {
	d := newDWSTest(t, dwstest.Answering(403, `{"details": "refused: other+secret/1"}`))
	_, err := d.call("other+secret/1").Send(callContext())
	if f, _ := errors.AsType[*Error](err); f == nil || f.Reason != KeyRefused || strings.Contains(f.Error(), "secret") || !strings.Contains(f.Error(), "(refused: REDACTED)") {
		t.Errorf("got %v", err)
	}
}

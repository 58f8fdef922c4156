package viewersession

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/viewersession/caddy-viewer-session/internal/dws"
	"github.com/viewersession/caddy-viewer-session/internal/dwstest"
	"github.com/viewersession/caddy-viewer-session/internal/probe"
)

// runMint runs the command like a shell does. The error's text has the exit
// code in it if that is more than 1.
func runMint(t *testing.T, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	var out, errs bytes.Buffer
	cmd := newMintCommand()
	cmd.SilenceUsage = true // as Caddy's root command has it
	cmd.SetOut(&out)
	cmd.SetErr(&errs)
	cmd.SetArgs(args)
	err = cmd.ExecuteContext(t.Context())
	for _, text := range []string{out.String(), errs.String(), fmt.Sprint(err)} {
		if strings.Contains(text, dwstest.Key) {
			t.Errorf("the key stands in %q", text)
		}
		if strings.Contains(text, "eyJ") && !slices.Contains(args, "--show-token") {
			t.Errorf("a token stands in %q", text)
		}
	}
	return out.String(), errs.String(), err
}

func exitCodeOf(err error) int {
	var code int
	if err == nil {
		return 0
	}
	if _, scanErr := fmt.Sscanf(err.Error(), "exiting with status %d", &code); scanErr == nil {
		return code
	}
	return 1
}

// mintsFor is an API that mints for whoever has the test's key.
func mintsFor(claims map[string]any) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer "+dwstest.Key {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		dwstest.Answering(http.StatusCreated, dwstest.Reply(claims))(w, r)
	}
}

func atClock(offset time.Duration, next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Date", time.Now().Add(offset).UTC().Format(http.TimeFormat))
		next(w, r)
	}
}

func neverAnswering(_ http.ResponseWriter, r *http.Request) {
	io.Copy(io.Discard, r.Body) // else the server does not see that the client has gone
	<-r.Context().Done()
}

func TestMintCommand(t *testing.T) {
	exp := time.Now().Add(30 * time.Minute).Unix()
	claims := map[string]any{"document_id": "report", "exp": exp, "note": "ab"}
	mints := mintsFor(claims)
	echo := func(w http.ResponseWriter, r *http.Request) { // a server that tells more than it should
		dwstest.Answering(http.StatusBadRequest, `{"details":"`+r.Header.Get("Authorization")+` `+dwstest.JWT(claims)+`","requestId":"r-1"}`)(w, r)
	}
	noDate := func(w http.ResponseWriter, r *http.Request) {
		w.Header()["Date"] = nil
		mints(w, r)
	}
	breakingOff := func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "1000")
		w.WriteHeader(http.StatusCreated)
		io.WriteString(w, `{"jwt":"`)
	}
	tests := map[string]struct {
		api     http.HandlerFunc
		key     string
		args    []string
		outcome dws.Reason
		code    int
		says    []string
	}{
		"all is well":           {mints, dwstest.Key, nil, probe.OK, 0, []string{"All is well", "201, after", "clock     as the API's", `"document_id": "report"`, `"note": "ab"`, "in (30m0|29m59)s"}},
		"token without exp":     {mintsFor(map[string]any{"document_id": "report"}), dwstest.Key, nil, probe.OK, 0, []string{"does not say when it expires", "in (1h0m0|59m59)s"}},
		"no date to compare":    {noDate, dwstest.Key, nil, probe.OK, 0, []string{"not compared"}},
		"clock a little off":    {atClock(-12*time.Second, mints), dwstest.Key, nil, probe.OK, 0, []string{`\+1[12] s from the API's`}},
		"no key":                {mints, "", nil, probe.KeyMissing, 2, []string{"The API key is missing", "environment variable TEST_KEY"}},
		"key with its name":     {mints, "KEY=" + dwstest.Key, nil, probe.KeyMissing, 2, []string{"begins with KEY=", "the key alone"}},
		"no key file":           {mints, dwstest.Key, []string{"--api-key-file", "no/such/file"}, probe.KeyMissing, 2, []string{"the file no/such/file", "not there"}},
		"a folder as key file":  {mints, dwstest.Key, []string{"--api-key-file", "."}, probe.KeyMissing, 2, []string{"directory"}},
		"Processor key":         {mints, "pdf_live_processor", nil, dws.KeyRefused, 3, []string{`refuses the key \(403\)`, "Viewer key only"}},
		"no DWS key at all":     {mints, "sk-something", nil, dws.KeyRefused, 3, []string{"begin with pdf_live_, and this one does not"}},
		"key refused, no clock": {atClock(-time.Hour, mints), "pdf_live_processor", nil, dws.KeyRefused, 3, []string{"refuses the key", "(1h0m0|59m59)s ahead"}},
		"throttled":             {dwstest.Answering(429, "", "Retry-After", "90"), dwstest.Key, nil, dws.Throttled, 5, []string{"asks to slow down", "in 1m(30|29)s"}},
		"in trouble":            {dwstest.Answering(500, `{"requestId":"r-7"}`), dwstest.Key, nil, dws.Unavailable, 4, []string{"in trouble", "answered 500", "r-7"}},
		"wrong address":         {dwstest.Answering(404, ""), dwstest.Key, nil, dws.Refused, 5, []string{"answered 404", "check endpoint"}},
		"echoes secrets":        {echo, dwstest.Key, nil, dws.Refused, 5, []string{"REDACTED", "r-1"}},
		"a page":                {dwstest.Answering(200, "<html>"), dwstest.Key, nil, dws.InvalidReply, 5, []string{"not with a JSON object"}},
		"somebody else's token": {mintsFor(map[string]any{"document_id": "other", "exp": exp}), dwstest.Key, nil, dws.InvalidReply, 5, []string{"another document"}},
		"breaks off":            {breakingOff, dwstest.Key, nil, dws.Unavailable, 4, []string{"in trouble", "unexpected EOF"}},
		"hangs":                 {neverAnswering, dwstest.Key, []string{"--timeout", "100ms"}, dws.Timeout, 4, []string{"within 100ms", "HTTPS_PROXY"}},
		"clock ahead":           {atClock(-10*time.Minute, mints), dwstest.Key, nil, probe.ClockOff, 6, []string{"A token was minted", "ahead of the API's", "in (30m0|29m59)s"}},
		"clock behind":          {atClock(10*time.Minute, mints), dwstest.Key, nil, probe.ClockOff, 6, []string{"behind the API's", "expired"}},
		"clock so far ahead that the token has expired": {
			atClock(-2*time.Hour, mintsFor(map[string]any{"exp": time.Now().Add(-time.Hour).Unix()})), dwstest.Key, nil, probe.ClockOff, 6, []string{"expired already", "(2h0m0|1h59m59)s ahead"},
		},
		"clock so far behind that the API refuses exp": {atClock(2*time.Hour, dwstest.Answering(422, `{"details":"exp is past"}`)), dwstest.Key, nil, probe.ClockOff, 6, []string{"exp is past", "behind"}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			server := httptest.NewServer(test.api)
			defer server.Close()
			t.Setenv("TEST_KEY", test.key)
			args := append([]string{"--document", "report", "--endpoint", server.URL}, test.args...)
			if !slices.Contains(args, "--api-key-file") {
				args = append(args, "--api-key-env", "TEST_KEY")
			}
			stdout, stderr, err := runMint(t, args...)
			if code := exitCodeOf(err); code != test.code {
				t.Errorf("exit code %d (%v), want %d", code, err, test.code)
			}
			if (stderr == "") != (test.code == 0) {
				t.Errorf("exit code %d, and on stderr: %q", test.code, stderr)
			}
			for _, text := range test.says {
				if !regexp.MustCompile(text).MatchString(stdout + stderr) {
					t.Errorf("does not say %q:\n%s%s", text, stdout, stderr)
				}
			}

			stdout, stderr, err = runMint(t, append(args, "--json")...)
			if code := exitCodeOf(err); code != test.code || stderr != "" {
				t.Errorf("with --json: exit code %d, on stderr %q", code, stderr)
			}
			var r probe.Report
			if err := json.Unmarshal([]byte(stdout), &r); err != nil {
				t.Fatalf("%v in %s", err, stdout)
			}
			if r.OK != (test.code == 0) || r.Outcome != test.outcome || r.Endpoint != server.URL || r.Token != "" {
				t.Errorf("with --json: %s", stdout)
			}
			if test.code != 0 && !regexp.MustCompile(test.says[0]).MatchString(r.Message) {
				t.Errorf("the message does not say %q: %q", test.says[0], r.Message)
			}
		})
	}
}

func TestMintCommandAsksAsTold(t *testing.T) {
	keyFile := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(keyFile, []byte(dwstest.Key+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var asked map[string]any
	exp := time.Now().Add(20 * time.Minute).Unix()
	claims := map[string]any{"document_id": "{env.PATH}", "user_id": "ann", "exp": exp, "permissions": []string{"read", "write"}}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := json.NewDecoder(r.Body).Decode(&asked); err != nil {
			t.Error(err)
		}
		mintsFor(claims)(w, r)
	}))
	defer server.Close()
	before := time.Now()
	stdout, _, err := runMint(t, "--document", "{env.PATH}", "--permissions", "write, read", "--user", "ann", "--ttl", "20m",
		"--endpoint", server.URL, "--api-key-file", keyFile, "--json", "--show-token")
	if err != nil {
		t.Fatal(err)
	}
	gotExp := int64(asked["exp"].(float64))
	if gotExp < before.Add(20*time.Minute).Unix() || gotExp > time.Now().Add(20*time.Minute).Unix() {
		t.Errorf("asked for exp %d", gotExp)
	}
	delete(asked, "exp")
	want := map[string]any{
		"allowed_documents": []any{map[string]any{"document_id": "{env.PATH}", "document_permissions": []any{"read", "write"}, "permissions": []any{"read", "write"}}},
		"user_id":           "ann",
	}
	if !reflect.DeepEqual(asked, want) {
		t.Errorf("asked for %v, want %v", asked, want)
	}

	var got map[string]any
	if err := json.Unmarshal([]byte(stdout), &got); err != nil {
		t.Fatal(err)
	}
	if got["token"] != dwstest.JWT(claims) || got["expires_at"] != float64(exp) || got["status"] != 201.0 || got["clock_offset_seconds"] != 0.0 {
		t.Errorf("got %v", got)
	}
	wantMembers := []string{"claims", "clock_offset_seconds", "duration_seconds", "endpoint", "expires_at", "message", "ok", "outcome", "permissions_asked", "permissions_granted", "permissions_sent_as", "permissions_stated_as", "status", "token"}
	if members := slices.Sorted(maps.Keys(got)); !slices.Equal(members, wantMembers) {
		t.Errorf("got the members %v, want %v", members, wantMembers)
	}

	stdout, _, err = runMint(t, "--document", "{env.PATH}", "--user", "ann", "--permissions", "read write", "--endpoint", server.URL, "--api-key-file", keyFile, "--show-token")
	if err != nil || !strings.Contains(stdout, "token     "+dwstest.JWT(claims)+"\n") {
		t.Errorf("got %v, %s", err, stdout)
	}
}

func TestMintCommandAppProvided(t *testing.T) {
	t.Setenv("TEST_KEY", dwstest.Key)
	var body string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		sent, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		body = string(sent)
		mintsFor(map[string]any{"user_id": "ann", "exp": time.Now().Add(time.Hour).Unix()})(w, r)
	}))
	defer server.Close()
	stdout, stderr, err := runMint(t, "--app-provided", "--user", "ann", "--endpoint", server.URL, "--api-key-env", "TEST_KEY")
	if err != nil || stderr != "" || !strings.Contains(stdout, "All is well") || !strings.Contains(stdout, "asked     for no document and no permissions\ngranted   none are stated by the token\n") || strings.Contains(stdout, "cannot be verified") {
		t.Errorf("%v, %s%s", err, stdout, stderr)
	}
	if !regexp.MustCompile(`^{"exp":\d+,"user_id":"ann"}$`).MatchString(body) {
		t.Errorf("asked for %s", body)
	}

	server.Config.Handler = mintsFor(map[string]any{"document_id": "report", "exp": time.Now().Add(time.Hour).Unix()})
	_, stderr, err = runMint(t, "--app-provided", "--endpoint", server.URL, "--api-key-env", "TEST_KEY")
	if exitCodeOf(err) != 5 || !strings.Contains(stderr, "names a document, although none was asked for") {
		t.Errorf("%v, %s", err, stderr)
	}
}

func TestMintCommandLineMistakes(t *testing.T) {
	tests := map[string][]string{
		"--document is missing: write the document's id, or --app-provided":                      {},
		`if any flags in the group [document app-provided] are set none of the others can be`:    {"--document", "x", "--app-provided"},
		`if any flags in the group [permissions app-provided] are set none of the others can be`: {"--permissions", "read", "--app-provided"},
		"--document is missing":  {"--document", ""},
		"write them as UTF-8":    {"--document", "x\xff"},
		"not a duration":         {"--document", "x", "--ttl", "1 hour"},
		"from 1m to 30d":         {"--document", "x", "--ttl", "31d"},
		"100ms to 1m":            {"--document", "x", "--timeout", "0s"},
		"looks like a typo":      {"--document", "x", "--permissions", "raed"},
		"only separators":        {"--document", "x", "--permissions", ","},
		"is plain HTTP":          {"--document", "x", "--endpoint", "http://api.example.com/viewer/sessions"},
		"is not a URL":           {"--document", "x", "--endpoint", "api.example.com"},
		"api-key-env api-key-fi": {"--document", "x", "--api-key-env", "A", "--api-key-file", "b"},
		"--api-key-env: write":   {"--document", "x", "--api-key-env", dwstest.Key},
		"--api-key-file: write":  {"--document", "x", "--api-key-file", dwstest.Key},
		"unknown flag":           {"--document", "x", "--usr", "ann"},
	}
	for want, args := range tests {
		stdout, stderr, err := runMint(t, args...)
		if exitCodeOf(err) != 1 || !strings.Contains(stderr, want) || stdout != "" {
			t.Errorf("%q: exit code %d, %v, on stderr %q, want %q", args, exitCodeOf(err), err, stderr, want)
		}
	}
}

func TestMintCommandDoesNotReachTheAPI(t *testing.T) {
	t.Setenv("TEST_KEY", dwstest.Key)
	secure := httptest.NewUnstartedServer(mintsFor(nil))
	secure.Config.ErrorLog = log.New(io.Discard, "", 0)
	secure.StartTLS()
	defer secure.Close()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	listener.Close()
	for endpoint, want := range map[string]string{
		"http://" + listener.Addr().String(): "Nothing accepts connections there",
		secure.URL:                           "not signed by an authority that this machine knows",
	} {
		_, stderr, err := runMint(t, "--document", "x", "--endpoint", endpoint, "--api-key-env", "TEST_KEY")
		if exitCodeOf(err) != 4 || !strings.Contains(stderr, "does not answer") || !strings.Contains(stderr, want) {
			t.Errorf("exit code %d: %s", exitCodeOf(err), stderr)
		}
	}
}

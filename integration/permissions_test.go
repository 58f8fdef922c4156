package integration

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/viewersession/caddy-viewer-session/emulator"
)

// behaviours are the ways in which the API may read permissions: as reported
// of the live one, as its guides say, and as the guides say and nothing else.
var behaviours = map[string]emulator.Options{
	"permissions":          {APIKey: testKey},
	"document_permissions": {APIKey: testKey, PermissionsMember: "document_permissions"},
	"strict":               {APIKey: testKey, Strict: true},
}

// permissionsOf is what an entry of a token's allowed_documents states.
func permissionsOf(entry map[string]any) string {
	stated := entry["permissions"]
	if stated == nil {
		stated = entry["document_permissions"]
	}
	return fmt.Sprint(stated)
}

const permissionsSite = `GATEWAY {
	viewer_session {
		endpoint API/viewer/sessions
		shared
		document_path /read/:id {
			session_path /read/:id/session
		}
		document_path /edit/:id {
			permissions read write
		}
		document_path /all/:id {
			permissions read write download
		}
		document_path /pass/:id {
			permissions read
		}
	}
	respond /read/*/session 204
	reverse_proxy APP
}
`

func TestTokensPermitWhatWasAskedFor(t *testing.T) {
	for name, behaviour := range behaviours {
		t.Run(name, func(t *testing.T) {
			apiBehaves = behaviour
			defer func() { apiBehaves = behaviours["permissions"] }()
			s := newStage(t)
			s.load(permissionsSite)
			permitted := func(token string) string {
				return permissionsOf(claims(t, token)["allowed_documents"].([]any)[0].(map[string]any))
			}
			for path, want := range map[string]string{"/read/a": "[read]", "/edit/a": "[read write]", "/all/a": "[download read write]"} {
				if got := permitted(s.token(path)); got != want {
					t.Errorf("%s: a token for %s, want %s", path, got, want)
				}
			}
			session := func(path string) (status int, jwt string) {
				resp, body := s.fetch("GET", path)
				var answer struct{ JWT string }
				_ = json.Unmarshal([]byte(body), &answer)
				return resp.StatusCode, answer.JWT
			}
			if status, jwt := session("/read/b/session"); status != 200 || permitted(jwt) != "[read]" {
				t.Errorf("session path: status %d", status)
			}

			// An API that grants everything, whatever it is asked for.
			s.api.SetFault(emulator.Fault{Mode: "grant_all"})
			before := len(s.app.all())
			s.get("/read/c", 502)
			if status, jwt := session("/read/c/session"); status != 502 || jwt != "" {
				t.Errorf("session path: status %d, token %q", status, jwt)
			}
			if got := len(s.app.all()); got != before {
				t.Errorf("the app saw %d requests", got-before)
			}
			if got := permitted(s.token("/all/c")); got != "[read write download]" && got != "[download read write]" {
				t.Errorf("everything was asked for, and the token permits %s", got)
			}
			log, err := os.ReadFile(s.logFile)
			if err != nil {
				t.Fatal(err)
			}
			told := 0
			for line := range strings.Lines(string(log)) {
				if strings.Contains(line, "cannot mint a session token") {
					told++
					if !strings.Contains(line, `"level":"error"`) || !strings.Contains(line, `"reason":"over_granted"`) || !strings.Contains(line, "ask for it in permissions") {
						t.Errorf("logged %s", line)
					}
				}
			}
			if told != 1 {
				t.Errorf("told %d times", told)
			}
		})
	}
}

// What a page gets does not depend on how the API reads permissions.
func TestCoreCasesWithOtherAPIs(t *testing.T) {
	defer func() { apiBehaves = behaviours["permissions"] }()
	for _, name := range []string{"document_permissions", "strict"} {
		t.Run(name, func(t *testing.T) {
			apiBehaves = behaviours[name]
			t.Run("page", TestDocumentPageGetsItsToken)
			t.Run("burst", TestBurstForOneColdDocument)
			t.Run("purge", TestPurge)
			t.Run("reload", TestReloadInTheMiddleOfTraffic)
			t.Run("key", TestRotatedKeyFileNeedsNoReload)
			t.Run("session", TestSessionPath)
			t.Run("dead API", TestDeadAPI)
		})
	}
}

// The command tells an operator with a key of the real API how that one behaves.
func TestMintCommandTellsAPIsApart(t *testing.T) {
	type report struct {
		Outcome  string
		Asked    []string `json:"permissions_asked"`
		SentAs   []string `json:"permissions_sent_as"`
		Granted  []string `json:"permissions_granted"`
		StatedAs []string `json:"permissions_stated_as"`
	}
	both, documented, live := "document_permissions and permissions", "document_permissions", "permissions"
	for _, test := range []struct {
		behaviour, fault      string
		code                  int
		outcome               string
		sent, granted, stated string
	}{
		{"permissions", "", 0, "ok", both, "read", live},
		{"document_permissions", "", 0, "ok", both, "read", documented},
		{"strict", "", 0, "ok", documented, "read", documented},
		{"permissions", "grant_all", 7, "over_granted", both, "download read write", live},
		{"permissions", "unstated", 0, "ok", both, "", ""},
		{"strict", "unstated", 7, "over_granted", documented, "", ""},
	} {
		t.Run(test.behaviour+" "+test.fault, func(t *testing.T) {
			options := behaviours[test.behaviour]
			options.Fault = emulator.Fault{Mode: test.fault}
			api := newStandIn(t, options)
			args := []string{"viewer-session", "mint", "--document", "floor-plan", "--endpoint", api.url + "/viewer/sessions"}
			code, stdout, stderr := caddyCommand(t, nil, args...)
			granted := "granted   " + test.granted + " (stated as " + test.stated + ")\n"
			if test.granted == "" {
				granted = "granted   not stated by the token\n"
			}
			if code != test.code || !strings.Contains(stdout, "asked     read (sent as "+test.sent+")\n"+granted) || (stderr == "") != (code == 0) {
				t.Errorf("exit code %d: %s%s", code, stdout, stderr)
			}
			code, stdout, _ = caddyCommand(t, nil, append(args, "--json")...)
			var got report
			if err := json.Unmarshal([]byte(stdout), &got); err != nil {
				t.Fatal(err)
			}
			if code != test.code || got.Outcome != test.outcome || !slices.Equal(got.Asked, []string{"read"}) || strings.Join(got.SentAs, " and ") != test.sent ||
				strings.Join(got.Granted, " ") != test.granted || strings.Join(got.StatedAs, " and ") != test.stated {
				t.Errorf("exit code %d: %s", code, stdout)
			}
		})
	}
}

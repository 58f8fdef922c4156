package integration

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/viewersession/caddy-viewer-session/emulator"
)

// asCommand lets the test's binary be the caddy command instead.
const asCommand = "VIEWER_SESSION_TEST_AS_COMMAND"

// caddyCommand runs the caddy command in a process of its own.
func caddyCommand(t *testing.T, env []string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(t.Context(), self, args...)
	cmd.Env = append(append(os.Environ(), asCommand+"=1"), env...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		exit, ok := errors.AsType[*exec.ExitError](err)
		if !ok {
			t.Fatal(err)
		}
		code = exit.ExitCode()
	}
	for _, text := range []string{out.String(), errs.String()} {
		if strings.Contains(text, testKey) || strings.Contains(text, "pdf_live_processor") || secrets.MatchString(text) {
			t.Errorf("%q prints a token or a key: %s", args, text)
		}
	}
	return code, out.String(), errs.String()
}

func TestMintCommand(t *testing.T) {
	api := newStandIn(t, emulator.Options{APIKey: testKey})
	endpoint := api.url + "/viewer/sessions"
	down := "http://" + freeAddress(t)
	mint := []string{"viewer-session", "mint", "--document", "floor-plan", "--permissions", "read download", "--endpoint"}

	code, stdout, stderr := caddyCommand(t, nil, append(mint, endpoint)...)
	if code != 0 || !strings.Contains(stdout, "All is well") || !strings.Contains(stdout, `"document_id": "floor-plan"`) || stderr != "" {
		t.Errorf("exit code %d: %s%s", code, stdout, stderr)
	}
	if minted := api.minted(); len(minted) != 1 {
		t.Errorf("%d mints, want 1", len(minted))
	}

	for _, test := range []struct {
		endpoint, key string
		code          int
		outcome, says string
	}{
		{endpoint, "", 2, "key_missing", "is not set here"},
		{endpoint, "pdf_live_processor_key", 3, "key_refused", "a Viewer key and a Processor key"},
		{down, testKey, 4, "unavailable", "Nothing accepts connections"},
		{strings.TrimSuffix(endpoint, "s"), testKey, 5, "rejected", "check endpoint"},
	} {
		env := []string{keyEnv + "=" + test.key}
		code, stdout, stderr := caddyCommand(t, env, append(mint, test.endpoint)...)
		if code != test.code || !strings.Contains(stderr, test.says) || stdout != "" {
			t.Errorf("%s: exit code %d: %s%s", test.outcome, code, stdout, stderr)
		}
		code, stdout, stderr = caddyCommand(t, env, append(mint, test.endpoint, "--json")...)
		var report struct {
			OK               bool
			Outcome, Message string
		}
		if err := json.Unmarshal([]byte(stdout), &report); err != nil || code != test.code || report.OK || report.Outcome != test.outcome || stderr != "" {
			t.Errorf("%s: exit code %d, %v: %s%s", test.outcome, code, err, stdout, stderr)
		}
	}

	code, stdout, stderr = caddyCommand(t, nil, "viewer-session", "mint")
	if code != 1 || !strings.Contains(stderr, "--document is missing") || stdout != "" {
		t.Errorf("exit code %d: %s%s", code, stdout, stderr)
	}
}

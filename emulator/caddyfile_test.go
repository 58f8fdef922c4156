package emulator

import (
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2/caddyconfig"
)

func TestCaddyfile(t *testing.T) {
	for _, tc := range []struct {
		name, config string
		want         string // part of the JSON, or of the error
		fails        bool
	}{
		{"bare", "dws_emulator", `{"handler":"dws_emulator"}`, false},
		{"empty block", "dws_emulator {\n}", `{"handler":"dws_emulator"}`, false},
		{
			"everything", "dws_emulator {\napi_key {env.K}\nserver_url http://localhost:1/\nmax_ttl 1d\ndelay 300ms\nallow_remote\n}",
			`{"allow_remote":true,"api_key":"{env.K}","fault":{"delay":300000000},"handler":"dws_emulator","max_ttl":86400000000000,"server_url":"http://localhost:1/"}`, false,
		},
		{"strict", "dws_emulator {\nstrict\n}", `{"handler":"dws_emulator","strict":true}`, false},
		{"permissions_member", "dws_emulator {\npermissions_member document_permissions\n}", `"permissions_member":"document_permissions"`, false},
		{"another permissions_member", "dws_emulator {\npermissions_member rights\n}", `permissions_member "rights": use permissions or document_permissions`, true},
		{"matcher", "dws_emulator /x", `"match":[{"path":["/x"]}]`, false},
		{"before respond", "respond no\ndws_emulator", `{"handler":"dws_emulator"},{"body":"no","handler":"static_response"}`, false},
		{"after error", "dws_emulator\nerror 500", `{"handler":"error","status_code":500},{"handler":"dws_emulator"}`, false},

		{"argument", "dws_emulator now", `unexpected argument "now"`, true},
		{"unknown", "dws_emulator {\napi_keys x\n}", `unrecognized subdirective "api_keys": use api_key`, true},
		{"repeated", "dws_emulator {\napi_key x\napi_key x\n}", "api_key is given twice, at Caddyfile:4", true},
		{"flag repeated", "dws_emulator {\nallow_remote\ndelay 1s\nallow_remote\n}", "allow_remote is given twice", true},
		{"missing argument", "dws_emulator {\nserver_url\n}", "server_url takes 1 non-empty argument(s), got []", true},
		{"empty argument", "dws_emulator {\napi_key \"\"\n}", "api_key takes 1 non-empty", true},
		{"extra argument", "dws_emulator {\napi_key x y\n}", `got ["x" "y"]`, true},
		{"flag with an argument", "dws_emulator {\nallow_remote on\n}", "allow_remote takes 0", true},
		{"nested block", "dws_emulator {\napi_key x {\ny\n}\n}", `unrecognized subdirective "{"`, true},
		{"no unit", "dws_emulator {\nmax_ttl 5\n}", `max_ttl: "5" is not a positive duration`, true},
		{"negative", "dws_emulator {\ndelay -1s\n}", `delay: "-1s" is not a positive duration`, true},
		{"zero", "dws_emulator {\nmax_ttl 0s\n}", `"0s" is not a positive duration`, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, _, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(":9091 {\n"+tc.config+"\n}\n"), nil)
			if tc.fails {
				if err == nil || !strings.Contains(err.Error(), tc.want) {
					t.Errorf("error %v, want %s; adapted to %s", err, tc.want, got)
				}
			} else if err != nil || !strings.Contains(string(got), tc.want) {
				t.Errorf("adapted to %s, %v; want %s", got, err, tc.want)
			}
		})
	}
}

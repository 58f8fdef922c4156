package dws

import (
	"errors"
	"strings"
	"testing"

	"github.com/viewersession/caddy-viewer-session/internal/dwstest"
)

// TestWhatATokenPermits shows side by side what is used, and what is refused.
func TestWhatATokenPermits(t *testing.T) {
	const notList = "is not a list of names"
	for _, test := range []struct {
		asked, claims string
		extra         string // permissions that were not asked for, or the error of a token that is not understood
		missing       string
		unverified    bool
	}{
		{"read", `{"permissions": ["read"]}`, "", "", false},
		{"read", `{"document_permissions": ["read"]}`, "", "", false},
		{"read", `{"allowed_documents": [{"document_id": "doc", "permissions": ["read"]}]}`, "", "", false},
		{"read", `{"allowed_documents": [{"document_id": "doc", "document_permissions": ["read"]}]}`, "", "", false},
		{"read", `{"permissions": ["read-document"]}`, "", "", false},
		{"read", `{"permissions": ["READ-DOCUMENT", " read "]}`, "", "", false},
		{"read write", `{"permissions": ["write"], "document_permissions": ["read"]}`, "", "", false},
		{"read write download", `{"permissions": ["write", "read", "download"]}`, "", "", false},
		{"Read WRITE", `{"permissions": ["write", "read"]}`, "", "", false},
		{"read", `{"permissions": ["read"], "allowed_operations": ["write", "download", "comments"]}`, "", "", false},
		{"read print", `{"permissions": ["read", "print"]}`, "", "", false},
		{"write", `{"permissions": ["read", "write"]}`, "", "", false},

		// More than was asked for, wherever it stands.
		{"read", `{"permissions": ["read", "write"]}`, "write", "", false},
		{"read", `{"permissions": ["download"]}`, "download", "", false},
		{"read", `{"document_permissions": ["read", "write", "download"]}`, "write and download", "", false},
		{"read", `{"allowed_documents": [{"document_id": "doc", "permissions": ["read", "write"]}]}`, "write", "", false},
		{"read", `{"allowed_documents": [{"document_id": "doc", "document_permissions": ["download"]}]}`, "download", "", false},
		{"read", `{"allowed_documents": [{"document_id": "doc", "document_permissions": ["read"], "permissions": ["write"]}]}`, "write", "", false},
		{"read", `{"allowed_documents": [{"document_id": "doc", "permissions": ["read"]}], "permissions": ["write"]}`, "write", "", false},
		{"read", `{"allowed_documents": [{"document_id": "doc", "permissions": ["read"]}, {"document_id": "doc", "permissions": ["write"]}]}`, "write", "", false},
		{"read", `{"allowed_documents": [{"permissions": ["write"]}]}`, "write", "", false},
		{"read", `{"permissions": ["Write"]}`, "write", "", false},
		{"read", `{"permissions": [" download\t"]}`, "download", "", false},
		{"read download", `{"permissions": ["read", "write", "download"]}`, "write", "", false},
		{"write", `{"permissions": ["read", "write", "download"]}`, "download", "", false},
		{"read print", `{"permissions": ["write", "print"]}`, "write", "", false},
		{"read", `{"permissions": ["read write"]}`, "write", "", false},
		{"read", `{"permissions": ["read,download"]}`, "download", "", false},
		{"read", `{"permissions": ["read-document", "write-document"]}`, "write", "", false},
		{"read", `{"permissions": ["read", "write\ufeff"]}`, "write", "", false},
		{"read", `{"permissions": ["read", "\u0000download"]}`, "download", "", false},

		// Less than was asked for.
		{"read write", `{"permissions": ["read"]}`, "", "write", false},
		{"download read write", `{"permissions": ["read"]}`, "", "download write", false},
		{"read print", `{"permissions": ["read"]}`, "", "print", false},

		// Nothing, or nothing that is known.
		{"read", `{}`, "", "", true},
		{"read", `{"permissions": null}`, "", "", true},
		{"read", `{"permissions": []}`, "", "", true},
		{"read", `{"permissions": [""]}`, "", "", true},
		{"read", `{"allowed_documents": [{"document_id": "doc", "permissions": null, "document_permissions": []}]}`, "", "", true},
		{"read", `{"permissions": ["read", "annotate"]}`, "", "", true},
		{"read", `{"permissions": ["edit-annotations"]}`, "", "read", true},

		// What is there in a form that is not known.
		{"read", `{"permissions": "read write"}`, notList, "", false},
		{"read", `{"permissions": {"write": true}}`, notList, "", false},
		{"read", `{"permissions": true}`, notList, "", false},
		{"read", `{"permissions": ["read", 5]}`, notList, "", false},
		{"read", `{"permissions": ["read", null]}`, notList, "", false},
		{"read", `{"permissions": [["write"]]}`, notList, "", false},
		{"read", `{"allowed_documents": [{"document_id": "doc", "document_permissions": "write"}]}`, notList, "", false},
	} {
		asked := strings.Fields(test.asked)
		facts, err := ReadToken(dwstest.JWTWithPayload(test.claims), &Request{DocumentID: "doc", Permissions: asked}, 1_800_003_600, testNow)
		if test.extra != "" {
			_, over := errors.AsType[*overGrantError](err)
			if err == nil || !strings.Contains(err.Error(), test.extra) || over != (test.extra != notList) {
				t.Errorf("%s for %s: got %v, want %s", test.claims, test.asked, err, test.extra)
			}
			if over && !strings.HasPrefix(err.Error(), "the token also permits "+test.extra+", which was not asked for, so it is not used; if "+test.extra+" is wanted, ask for it in permissions") {
				t.Errorf("%s for %s: got %v", test.claims, test.asked, err)
			}
			continue
		}
		missing, unverified := facts.Grant.Doubts(asked)
		if err != nil || strings.Join(missing, " ") != test.missing || (unverified != nil) != test.unverified {
			t.Errorf("%s for %s: got %v, missing %v, unverified %v, want %q, %v", test.claims, test.asked, err, missing, unverified, test.missing, test.unverified)
		}
	}
}

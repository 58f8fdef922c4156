import { loadViewer } from "/viewer-session.js";

const main = document.querySelector("main");
let current = new AbortController(); // of the document that is open

async function show() {
	current.abort(); // the viewer before, also if it is still loading
	current = new AbortController();
	const { signal } = current;

	const id = location.pathname.replaceAll("/", "");
	main.textContent = id ? "" : "Choose a document.";
	if (!id) {
		return;
	}
	const alert = main.appendChild(document.createElement("p"));
	alert.role = "alert";
	const container = main.appendChild(document.createElement("div"));
	container.style.height = "100%";
	const onError = (error) => (alert.textContent = error.message);
	try {
		await loadViewer(NutrientViewer, { container }, {
			sessionUrl: `/api/documents/${id}/session`,
			signal,
			onError, // a new token is needed, and there is none
			onSession: () => (alert.textContent = ""), // there is one again
		});
	} catch (error) {
		if (!signal.aborted) {
			onError(error);
		}
	}
}

document.addEventListener("click", (event) => {
	const link = event.target.closest("nav a");
	if (link) {
		event.preventDefault();
		history.pushState(null, "", link.href);
		show();
	}
});
addEventListener("popstate", show);
show();

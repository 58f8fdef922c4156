import { loadViewer } from "./viewer-session.js";

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
	const container = main.appendChild(document.createElement("div"));
	container.style.height = "100%";
	try {
		await loadViewer(NutrientViewer, { container }, { sessionUrl: `/api/documents/${id}/session`, signal });
	} catch (error) {
		if (!signal.aborted) {
			container.textContent = error.message;
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

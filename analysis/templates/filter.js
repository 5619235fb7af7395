// In a long study: a field that shows only the arms whose names hold what is typed. The baseline stays.
(() => {
  const tables = [...document.querySelectorAll("table.arms")];
  const label = document.createElement("label");
  label.className = "filter";
  label.textContent = "Show arms with ";
  const field = document.createElement("input");
  field.type = "search";
  field.placeholder = "part of a name";
  label.append(field);
  document.querySelector("nav").after(label);
  field.addEventListener("input", () => {
    const wanted = field.value.trim().toLowerCase();
    for (const table of tables) {
      for (const row of table.querySelectorAll("tbody tr")) {
        const kept = row.classList.contains("baseline") || row.cells[0].textContent.toLowerCase().includes(wanted);
        row.hidden = !kept;
      }
    }
  });
})();
